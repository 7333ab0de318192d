"""PreActResNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from hookflat import Activation, Normalization, Normalized, PreActNet, Run, Width, hookimpl


@dataclass(eq=False)
class PreActResNet:
    """PreActResNet-18 for small images, the network of Rice et al. and AWP: 11,172,170 parameters on colour images.

    Four stages of two blocks, norm and activation before the pooling. Input normalisation by the training set's
    statistics is its first layer. Weights of the official repositories and of RobustBench fit.
    """

    paper: ClassVar[str] = "He et al. 2016, arXiv 1603.05027; github.com/locuslab/robust_overfitting"

    width: Width = 64
    blocks: Annotated[int, Field(ge=1, description="blocks a stage")] = 2
    norm: Annotated[Normalization, Field(description="of activations; rebn: batch norm with scale 1 + weight")] = (
        "batch"
    )
    act: Annotated[Activation, Field(description="activation")] = "relu"
    final_norm: Annotated[bool, Field(description="norm and activation before the pooling")] = True
    raw_shortcut: Annotated[bool, Field(description="1x1 convolutions see the block's input, not its activation")] = (
        False
    )

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        widths = [self.width * 2**stage for stage in range(4)]
        net = PreActNet(
            self.width,
            widths,
            self.blocks,
            run.data.channels,
            run.data.num_classes,
            self.norm,
            self.act,
            final_norm=self.final_norm,
            raw_shortcut=self.raw_shortcut,
        )
        return Normalized(net, *run.data.train.statistics())
