"""Robust loss and robust error by PGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import hookimpl
from hookflat.measuring import Subject


@dataclass(eq=False)
class RobustLossMeasure:
    """RLoss and RErr by PGD: for each example the worst over restarts; wrong clean or adversarially is wrong."""

    paper: ClassVar[str] = "Stutz et al. 2021, section 2; protocol 1.1"

    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    restarts: Annotated[int, Field(ge=1, description="random starts")] = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        robust = subject.robust(self.steps, self.restarts)
        return {"rloss": robust.loss, "rerr_pgd": robust.error}
