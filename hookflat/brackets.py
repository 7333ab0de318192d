"""Brackets around a network: whatever one changes it puts back, bit for bit, also when the body raises."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Generator[None]:
    """Copy the values of `tensors` (parameters or buffers) and write them back on any exit."""
    tensors = list(tensors)
    saved = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)


@contextmanager
def frozen(model: nn.Module, *, train: bool = False) -> Generator[None]:
    """Evaluation mode (or training mode) and no weight gradients inside; modes, flags and buffers as found outside."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.train(train)
        for p, _ in flags:
            p.requires_grad_(False)
        if train:
            with restored(model.buffers()):
                yield
        else:
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, flag in flags:
            p.requires_grad_(flag)
