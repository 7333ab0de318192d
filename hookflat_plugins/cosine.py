"""Cosine learning rate with warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hookflat import Number, Run, Share, hookimpl, period_in_epochs


@dataclass(eq=False)
class Cosine:
    """Learning rate linearly up to its full value in the warm-up, then down to `floor` of it along half a cosine.

    Step t of W warm-up steps has the factor (t + 1) / W; afterwards floor + (1 - floor) (1 + cos(pi (t - W) / (T - W)))
    / 2 of T steps in all.
    """

    paper: ClassVar[str] = "Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts"

    warmup: Annotated[Number, Field(ge=0, description="epochs, or a share of the training below 1; 0: none")] = 0
    floor: Annotated[Share, Field(description="share of the learning rate at the end")] = 0.0

    @hookimpl
    def build_schedule(self, run: Run, optimizer: Optimizer) -> LambdaLR:
        epochs = period_in_epochs(self.warmup, run.epochs) if self.warmup else 0
        rise, whole = min(epochs * run.steps_per_epoch, run.total_steps), run.total_steps

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            height = (1 + math.cos(math.pi * (step - rise) / max(1, whole - rise))) / 2
            return self.floor + (1 - self.floor) * height

        return LambdaLR(optimizer, factor)
