"""Residual networks with pre-activation for small images: PreActResNet and wide ResNets, as the field trains them.

He et al. 2016, arXiv 1603.05027; Zagoruyko and Komodakis 2016, arXiv 1605.07146. Those of timm are for ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hookflat.functional.networks import ACTIVATIONS, NORMS, Activation, he_initialised


class PreActBlock(nn.Module):
    """norm, activation, 3x3 convolution, twice, beside the identity or a 1x1 convolution.

    `raw_shortcut`: the 1x1 convolution sees the block's input instead of the first activation. `same`: stride 2 pads
    below and on the right alone, as TensorFlow does.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        norm: Callable[..., nn.Module],
        act: Activation,
        raw_shortcut: bool,
        same: bool,
    ) -> None:
        super().__init__()
        self.same = same and stride == 2
        self.raw_shortcut = raw_shortcut
        self.bn1, self.act1 = norm(channels), ACTIVATIONS[act]()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 0 if self.same else 1, bias=False)
        self.bn2, self.act2 = norm(out), ACTIVATIONS[act]()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, out, H / stride, W / stride) of (n, channels, H, W)."""
        active = self.act1(self.bn1(x))
        beside = x if self.shortcut is None else self.shortcut(x if self.raw_shortcut else active)
        out = self.conv1(F.pad(active, (0, 1, 0, 1)) if self.same else active)
        return self.conv2(self.act2(self.bn2(out))) + beside


class PreActNet(nn.Module):
    """A 3x3 stem, stages of `PreActBlock`, the first without stride, norm and activation, average pooling.

    `widths`: channels of each stage; `blocks`: of each stage; `final_norm`: norm and activation before the pooling.
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        channels: int,
        classes: int,
        norm: str,
        act: Activation,
        *,
        final_norm: bool = True,
        raw_shortcut: bool = False,
        same: bool = False,
    ) -> None:
        super().__init__()
        make = NORMS[norm]
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        before = stem
        for stage, width in enumerate(widths):
            parts = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                parts.append(PreActBlock(before, width, stride, make, act, raw_shortcut, same))
                before = width
            self.stages.append(nn.Sequential(*parts))
        self.bn = make(before) if final_norm else nn.Identity()
        self.act = ACTIVATIONS[act]() if final_norm else nn.Identity()
        self.fc = nn.Linear(before, classes)
        he_initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        return self.fc(self.act(self.bn(self.stages(self.conv1(x)))).mean(dim=(2, 3)))
