"""Functionally equal networks of another scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hookflat.functional.attack_view import conv_norm_pairs
from hookflat.functional.layers import RecenteredBatchNorm2d


@torch.no_grad()
def rescale(model: nn.Module, factor: float) -> int:
    """Multiply the weights of every convolution that a batch norm follows by `factor`, in place; how many there are.

    The batch norm's statistics follow, and its scale makes up for its `eps`, so that in evaluation mode the network is
    the same function up to rounding (protocol, section 4.7, which scales the logits' layer as well and thereby changes
    RLoss). Raises ValueError, and changes nothing, for a factor that is not positive or takes weights out of the range
    of their type, and where no batch norm follows a convolution.
    """
    if not factor > 0:
        raise ValueError(f"the factor should be positive, not {factor}")
    pairs = conv_norm_pairs(model)
    if not pairs:
        raise ValueError("no convolution with a batch norm behind it was found: there is nothing to rescale")
    changes: list[tuple[Tensor, Tensor]] = []
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        tensors = [conv.weight, norm.running_mean, *([] if conv.bias is None else [conv.bias])]
        changes += [(tensor, tensor * factor) for tensor in tensors]
        var = norm.running_var * (factor * factor)
        correction = (var + norm.eps).sqrt() / (factor * (norm.running_var + norm.eps).sqrt())
        changes.append((norm.running_var, var))
        if isinstance(norm, RecenteredBatchNorm2d):
            changes.append((norm.weight, norm.scale * correction - 1))
        elif norm.affine:
            changes.append((norm.weight, norm.weight * correction))
    if any(_leaves_the_range(before, after) for before, after in changes):
        raise ValueError(f"the factor {factor:g} takes weights out of the range of {changes[0][0].dtype}")
    for tensor, after in changes:
        tensor.copy_(after)
    return len(pairs)


def _leaves_the_range(before: Tensor, after: Tensor) -> bool:
    """Whether values became infinite, or the largest so small that it loses digits."""
    limits = torch.finfo(after.dtype)
    low = limits.tiny / limits.eps
    return not after.isfinite().all() or bool(after.abs().amax() < low <= before.abs().amax())
