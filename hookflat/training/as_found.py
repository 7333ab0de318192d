"""What a measure hands back: numbers, and the network as it found it.

One that left it changed would train on, or spoil what is measured next.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hookflat.errors import TrainingFailed
from hookflat.training.set_aside import set_aside

_OF_A_LINE = ("epoch", "step", "stage", "split")
"""What each line of metrics.jsonl has, beside numbers by their names."""


@contextmanager
def left_as_found(model: nn.Module, measure: str) -> Generator[None]:
    """Raises TrainingFailed where weights, statistics, gradients or modes of `model` are others after the measure."""
    before, modes = set_aside(model.state_dict().items()), [m.training for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    yield
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        if p.grad is not gradient and (p.grad is None or gradient is None or not _same(p.grad, gradient)):
            raise TrainingFailed(
                f"measure {measure!r} leaves gradients, which a training would step along: take them by "
                "torch.autograd.grad"
            )
    moved = next((name for name, t in model.state_dict().items() if not _same(t, before[name])), None)
    if moved or modes != [m.training for m in model.modules()]:
        what = f"{moved} of the network changed" if moved else "the network in another mode"
        raise TrainingFailed(
            f"measure {measure!r} leaves {what}: put it back in `finally` (hookflat.moved, hookflat.frozen do)"
        )


def _same(now: torch.Tensor, then: torch.Tensor) -> bool:
    return torch.allclose(now.cpu(), then.cpu(), rtol=0, atol=0, equal_nan=True)


def checked_numbers(answer: Any, measure: str) -> Mapping[str, float]:
    """What a measure returned. Raises TrainingFailed where that is not a number to each name."""
    if not isinstance(answer, Mapping):
        raise TrainingFailed(f"measure {measure!r} should return a dict of numbers, not {type(answer).__name__}")
    for name, value in answer.items():
        if not (isinstance(name, str) and isinstance(value, int | float)):
            kind = type(value).__name__
            raise TrainingFailed(f"measure {measure!r} should return a float for {name!r}, not {kind} (see .item())")
        if name in _OF_A_LINE:
            raise TrainingFailed(f"measure {measure!r}: {name!r} is taken, each line of metrics.jsonl has one")
    return {name: float(value) for name, value in answer.items()}
