"""Per-example losses on logits, shared by training, attacks and measures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hookflat.functional.examples import check_labels

_NO_LABEL = -(2**31)
"""Torch leaves -100 out of the loss in silence; nobody means this one."""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(n,) cross-entropy of (n, K) logits with labels (n,) int64 or distributions (n, K), not in half precision.

    Raises ValueError for labels outside 0..K-1 (on a GPU the device fails).
    """
    precise = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    try:
        return F.cross_entropy(precise, target, reduction="none", ignore_index=_NO_LABEL)
    except IndexError:
        check_labels(target, logits.shape[1])
        raise


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) bool: whether the class of the largest of (n, K) logits is not `y`; so is one of logits that hold a NaN."""
    return (logits.argmax(dim=1) != y) | logits.isnan().any(dim=1)


def kl_divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """(n,) KL(softmax(logits) || softmax(logits_adv)), summed over classes; the gradient flows through both."""
    p = F.log_softmax(logits, dim=1)
    q = F.log_softmax(logits_adv, dim=1)
    return (p.exp() * (p - q)).sum(dim=1)
