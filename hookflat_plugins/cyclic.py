"""Cyclic learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hookflat import Number, Run, hookimpl


@dataclass(eq=False)
class Cyclic:
    """Learning rate linearly from 0 to `peak` and back to 0, `cycles` times; momentum stays fixed.

    Where the optimizer has several rates, the largest becomes `peak`, and the others keep their share of it.
    """

    paper: ClassVar[str] = "Wong et al. 2020, arXiv 2001.03994; protocol of Stutz et al. 2021, section 4 and quirk 3"

    peak: Annotated[Number, Field(gt=0, description="learning rate in the middle of a cycle")] = 0.2
    cycles: Annotated[int, Field(ge=1, description="in the whole training")] = 1

    @hookimpl
    def build_schedule(self, run: Run, optimizer: Optimizer) -> LambdaLR:
        length = run.total_steps / self.cycles

        def height(step: int) -> float:
            return 1 - abs(2 * (step % length) / length - 1)

        full = max(group["lr"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["initial_lr"] = self.peak * (group["lr"] / full)  # the largest, as with every other schedule
        return LambdaLR(optimizer, height)
