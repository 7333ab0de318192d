"""Networks for small images, from timm's parts, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import nn

from hookflat.functional.layers import RecenteredBatchNorm2d

Normalization = Literal["rebn", "batch", "group"]
Activation = Literal["relu", "silu", "gelu", "mish"]
# below 8, torch up to 2.15 corrupts memory on CPUs without AVX-512: 1x1 convolutions of stride 2, channels-last
Width = Annotated[int, Field(ge=8, multiple_of=2, description="channels of the first stage; doubles each stage")]


def group_norm(channels: int, **kwargs: Any) -> nn.GroupNorm:
    """Group norm with up to 8 groups: no batch statistics, hence the same function in training and evaluation."""
    return nn.GroupNorm(min(8, channels), channels)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "rebn": RecenteredBatchNorm2d,
    "group": group_norm,
}


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}


def he_initialised(net: nn.Module) -> nn.Module:
    """He normal weights, fan_out for convolutions and fan_in for linear layers, biases 0 (protocol, section 3)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = "fan_out" if isinstance(module, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def small_image_resnet(
    width: int,
    blocks: int | Sequence[int],
    channels: int,
    classes: int,
    norm: str,
    act: str,
    *,
    bottleneck: bool = False,
    bias: bool = True,
) -> nn.Module:
    """timm's ResNet of four stages with a 3x3 stem of stride 1 and no pooling.

    `blocks`: of each stage; `bottleneck`: of three convolutions, with four times the channels; `bias`: in stem and
    shortcuts.
    """
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    net = ResNet(
        cast(Any, Bottleneck if bottleneck else BasicBlock),  # timm's annotation asks for an instance
        (blocks,) * 4 if isinstance(blocks, int) else tuple(blocks),
        num_classes=classes,
        in_chans=channels,
        channels=(width, 2 * width, 4 * width, 8 * width),
        stem_type="deep",  # only this stem has a free width; the next line replaces it
        stem_width=width // 2,
        norm_layer=NORMS[norm],
        act_layer=act,
        zero_init_last=False,
    )
    net.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
    net.maxpool = nn.Identity()
    for module in net.modules():
        if isinstance(module, BasicBlock | Bottleneck) and isinstance(shortcut := module.downsample, nn.Sequential):
            old = cast(nn.Conv2d, shortcut[0])
            shortcut[0] = nn.Conv2d(old.in_channels, old.out_channels, 1, cast(Any, old.stride), bias=bias)
    return he_initialised(net)
