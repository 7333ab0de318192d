"""Wide residual networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from hookflat import Activation, Normalization, Normalized, PreActNet, Run, hookimpl


@dataclass(eq=False)
class WideResNet:
    """WRN-28-10 for small images, the network of TRADES, RST and Wang et al. 2023: 36,479,194 parameters on 10 classes.

    WRN-34-10: `depth = 34`; WRN-70-16: `depth = 70`, `widen = 16`. Input normalisation by the training set's statistics
    is its first layer. Weights of TRADES and RST fit, and with `same = true` those of Gowal et al., Rebuffi et al. and
    Wang et al. (there with `act = "silu"`).
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis 2016, arXiv 1605.07146; github.com/yaodongyu/TRADES"

    depth: Annotated[int, Field(ge=10, description="layers: 6 n + 4")] = 28
    widen: Annotated[int, Field(ge=1, description="channels of the first stage, in units of 16")] = 10
    norm: Annotated[Normalization, Field(description="of activations; rebn: batch norm with scale 1 + weight")] = (
        "batch"
    )
    act: Annotated[Activation, Field(description="activation")] = "relu"
    same: Annotated[bool, Field(description="stride 2 pads below and on the right alone, as in TensorFlow")] = False

    def __post_init__(self) -> None:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth = {self.depth} is not 6 n + 4: 16, 22, 28, 34, 70 are")

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        widths = [16 * self.widen * 2**stage for stage in range(3)]
        blocks = (self.depth - 4) // 6
        data = run.data
        net = PreActNet(16, widths, blocks, data.channels, data.num_classes, self.norm, self.act, same=self.same)
        return Normalized(net, *data.train.statistics())
