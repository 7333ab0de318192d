"""Multi-step learning rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hookflat import Number, Run, Share, hookimpl


@dataclass(eq=False)
class MultiStep:
    """Learning rate times `factor` at each milestone (protocol, section 3: 2/5, 3/5 and 4/5 of the training)."""

    milestones: Annotated[list[Share], Field(description="shares of the training")] = field(
        default_factory=lambda: [0.4, 0.6, 0.8]
    )
    factor: Annotated[Number, Field(gt=0, description="at each milestone")] = 0.1

    @hookimpl
    def build_schedule(self, run: Run, optimizer: Optimizer) -> LambdaLR:
        drops = [round(m * run.total_steps) for m in self.milestones]
        return LambdaLR(optimizer, lambda step: self.factor ** sum(step >= drop for drop in drops))
