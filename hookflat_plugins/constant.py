"""Constant learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hookflat import hookimpl


@dataclass(eq=False)
class Constant:
    """The optimizer's learning rate throughout."""

    @hookimpl
    def build_schedule(self, optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 1.0)
