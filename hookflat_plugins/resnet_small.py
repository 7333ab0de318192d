"""The paper's residual network, and its small sister for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import nn

from hookflat import hookimpl
from hookflat.functional.layers import NORMS, Normalized, he_initialised
from hookflat.training.run import Run

Norm = Literal["rebn", "batch", "group"]
Act = Literal["relu", "silu", "gelu", "mish"]
# below 8, torch up to 2.15 corrupts memory on CPUs without AVX-512: 1x1 convolutions of stride 2, channels-last
Width = Annotated[int, Field(ge=8, multiple_of=2, description="channels of the first stage; doubles each stage")]


def small_image_resnet(width: int, blocks: int, channels: int, classes: int, norm: str, act: str) -> nn.Module:
    """timm's ResNet of four stages with a 3x3 stem of stride 1, no pooling, and biases in stem and shortcuts."""
    from timm.models.resnet import BasicBlock, ResNet

    net = ResNet(
        cast(Any, BasicBlock),  # timm's annotation asks for an instance
        (blocks,) * 4,
        num_classes=classes,
        in_chans=channels,
        channels=(width, 2 * width, 4 * width, 8 * width),
        stem_type="deep",  # only this stem has a free width; the next line replaces it
        stem_width=width // 2,
        norm_layer=NORMS[norm],
        act_layer=act,
        zero_init_last=False,
    )
    net.conv1 = nn.Conv2d(channels, width, 3, padding=1)
    net.maxpool = nn.Identity()
    for module in net.modules():
        if isinstance(module, BasicBlock) and isinstance(shortcut := module.downsample, nn.Sequential):
            old = cast(nn.Conv2d, shortcut[0])
            shortcut[0] = nn.Conv2d(old.in_channels, old.out_channels, 1, cast(Any, old.stride))
    return he_initialised(net)


@dataclass(eq=False)
class ResNetSmall:
    """Residual network for small images: 3x3 stem, four stages of basic blocks, average pooling.

    The architecture of the paper (protocol, section 3) at width 16 with one block a stage: 309 thousand parameters on
    gray images. Input normalisation by the training set's statistics is its first layer.
    """

    paper: ClassVar[str] = "He et al. 2016, arXiv 1512.03385"

    width: Width = 16
    blocks: Annotated[int, Field(ge=1, description="basic blocks a stage")] = 1
    norm: Annotated[Norm, Field(description="normalisation; rebn is batch norm with scale 1 + weight")] = "rebn"
    act: Annotated[Act, Field(description="activation")] = "relu"

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        net = small_image_resnet(self.width, self.blocks, run.data.channels, run.data.num_classes, self.norm, self.act)
        return Normalized(net, *run.data.train.statistics())
