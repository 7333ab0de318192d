"""ResNet-18, 34 and 50 for CIFAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from hookflat import Activation, Normalization, Normalized, Run, Width, hookimpl, small_image_resnet

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(eq=False)
class CifarResNet:
    """ResNet-18, 34 or 50 as pytorch-cifar has them: 11,173,962, 21,282,122 and 23,520,842 parameters on 10 classes.

    3x3 stem, batch norm, no biases but the classifier's. Input normalisation by the training set's statistics is its
    first layer. Weights of pytorch-cifar, MART and RobustBench's ResNets fit. The paper's own is `resnet18`.
    """

    paper: ClassVar[str] = "He et al. 2016, arXiv 1512.03385; github.com/kuangliu/pytorch-cifar"

    depth: Annotated[Literal[18, 34, 50], Field(description="layers; 50 has bottlenecks")] = 18
    width: Width = 64
    norm: Annotated[Normalization, Field(description="of activations; rebn: batch norm with scale 1 + weight")] = (
        "batch"
    )
    act: Annotated[Activation, Field(description="activation")] = "relu"

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        data = run.data
        net = small_image_resnet(
            self.width,
            BLOCKS[self.depth],
            data.channels,
            data.num_classes,
            self.norm,
            self.act,
            bottleneck=self.depth == 50,
            bias=False,
        )
        return Normalized(net, *data.train.statistics())
