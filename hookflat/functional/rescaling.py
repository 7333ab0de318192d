"""Functionally equal networks of another scale."""

from __future__ import annotations

import torch
from torch import nn

from hookflat.functional.attack_view import conv_norm_pairs
from hookflat.functional.layers import RecenteredBatchNorm2d


@torch.no_grad()
def rescale(model: nn.Module, factor: float) -> int:
    """Multiply the weights of every convolution that a batch norm follows by `factor`, in place; how many there are.

    The batch norm's statistics follow, and its scale makes up for its `eps`, so that in evaluation mode the network is
    the same function up to rounding (protocol, section 4.7, which scales the logits' layer as well and thereby changes
    RLoss). Raises ValueError for a factor that is not positive, and where no batch norm follows a convolution.
    """
    if not factor > 0:
        raise ValueError(f"the factor should be positive, not {factor}")
    pairs = conv_norm_pairs(model)
    if not pairs:
        raise ValueError("no convolution with a batch norm behind it was found: there is nothing to rescale")
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight *= factor
        if conv.bias is not None:
            conv.bias *= factor
        before = norm.running_var.clone()
        norm.running_mean *= factor
        norm.running_var *= factor**2
        correction = (norm.running_var + norm.eps).sqrt() / (factor * (before + norm.eps).sqrt())
        if isinstance(norm, RecenteredBatchNorm2d):
            norm.weight.copy_(norm.scale * correction - 1)
        elif norm.affine:
            norm.weight.mul_(correction)
    return len(pairs)
