"""Statistics of averaged networks."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from hookflat.functional.brackets import restored
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples
from hookflat.functional.layers import AuxiliaryHead


def recalibrated(model: nn.Module, images: Images, *, batch_size: int, device: torch.device | str = "cpu") -> nn.Module:
    """A copy of `model` whose batch statistics are those of `images`, in batches, without augmentation.

    A last batch of less than a quarter of the others is left out; auxiliary heads keep their statistics.
    """
    copied = copy.deepcopy(model)
    examples = Examples(images, batch_size=batch_size, device=device)
    batches = ((x, y) for x, y, _ in examples if 4 * len(x) >= min(examples.batch_size, len(examples)))
    heads = [m.head for m in copied.modules() if isinstance(m, AuxiliaryHead)]
    with torch.random.fork_rng(), restored(b for head in heads for b in head.buffers()):
        update_bn(batches, copied)
    return copied
