"""Layers that the paper's networks need and libraries lack."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookflat.functional.broadcasting import per_image


def device_of(model: nn.Module, default: torch.device | None = None) -> torch.device:
    """Where a network's parameters and buffers are; `default` for one that has none, or the CPU."""
    there = (t.device for t in chain(model.parameters(), model.buffers()))
    return next(there, default or torch.device("cpu"))


class Normalized(nn.Module):
    """`net` behind a fixed per-channel normalisation, so that images, attacks and radii live in [0, 1].

    `mean`, `std`: one value a channel, in units of the image range.
    """

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1).clone())
        self.register_buffer("std", std.float().view(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """What `net` says of images (n, C, H, W) in [0, 1]."""
        return self.net((x - self.mean) / self.std)


class NormalizedLogits(nn.Module):
    """`net` with its logits centred and divided by their L2 norm (Andriushchenko et al. 2023)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of norm one."""
        logits = self.net(x)
        centred = logits - logits.mean(dim=1, keepdim=True)
        return centred / torch.linalg.vector_norm(centred, dim=1, keepdim=True).clamp_min(1e-10)


class AuxiliaryHead(nn.Module):
    """A classifier with a second head on the same features, for an auxiliary task.

    It answers with the classifier's logits alone; `auxiliary_logits` asks for the other's.
    """

    def __init__(self, classifier: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.classifier, self.head = classifier, head
        self.heard: list[Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """The classifier's logits of features (n, F), or (n, F, 1, 1) where the classifier is a convolution."""
        if self.heard is not None:
            self.heard.append(self.head(features.flatten(1)))
        return self.classifier(features)


def auxiliary_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of the `AuxiliaryHead` inside `model` (also an attack view, also distributed) for images (n, C, H, W)."""
    heads = [m for m in model.modules() if isinstance(m, AuxiliaryHead)]
    try:
        for head in heads:
            head.heard = []
        model(x)
        return [logits for head in heads for logits in head.heard or ()][-1].float()
    finally:
        for head in heads:
            head.heard = None


class RecenteredBatchNorm2d(nn.BatchNorm2d):
    """Batch norm computing (1 + weight) x_hat + bias with weight = bias = 0 at the start ("rebn" in the paper's code).

    All trainable values are centred at 0, so that clipping every parameter to [-w_max, w_max] bounds the scale to
    1 +- w_max instead of removing it, and weight decay pulls scales to 1 (protocol, section 3; Stutz et al. 2021,
    "Bit error robustness for energy-efficient DNN accelerators").
    """

    def reset_parameters(self) -> None:
        """Weight and bias 0."""
        self.reset_running_stats()
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @property
    def scale(self) -> Tensor:
        """(C,) the factor in front of the normalised activation."""
        return 1 + self.weight

    def forward(self, input: Tensor) -> Tensor:
        """As batch norm, with the factor `scale`."""
        batch_statistics = self.training or not self.track_running_stats
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the cumulative average
                momentum = 1 / float(self.num_batches_tracked)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.scale,
            self.bias,
            batch_statistics,
            momentum or 0.0,
            self.eps,
        )


class Autocast(nn.Module):
    """`net` under autocast to bfloat16 or float16, logits in float32. Parameters stay float32.

    `scaled`: with float16, every example's gradient goes back through `net` at a size that float16 holds, and leaves it
    at its own, zero where it overflowed. For networks that treat examples one by one, as in evaluation mode, and for
    the gradients of images: those of parameters would mix sizes.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype = torch.bfloat16, *, scaled: bool = False) -> None:
        super().__init__()
        self.net, self.dtype, self.scaled = net, dtype, scaled

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        scale = x.new_ones(len(x)) if self.scaled else None
        x = _Unscaled.apply(x, scale) if scale is not None else x
        with torch.autocast(x.device.type, dtype=self.dtype):
            logits = self.net(x)
        return logits.float() if scale is None else _Scaled.apply(logits.float(), scale)


_LARGEST = 2.0**8
"""Of an example's gradient by its logits inside a scaled `Autocast`: float16 holds 2^-14 to 2^16 well."""


class _Scaled(torch.autograd.Function):
    """Identity; backward, each example's gradient times the power of two that brings it near `_LARGEST`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scale: Tensor) -> Tensor:
        ctx.scale = scale
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        largest = gradient.abs().flatten(1).amax(dim=1)
        scale = torch.exp2(torch.floor(torch.log2(_LARGEST / largest.clamp_min(1e-30))))
        ctx.scale.copy_(scale)
        return gradient * per_image(scale, gradient), None


class _Unscaled(torch.autograd.Function):
    """Identity; backward, what `_Scaled` multiplied by is divided out again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        return gradient / per_image(ctx.scale, gradient), None
