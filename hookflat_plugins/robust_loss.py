"""Robust loss and robust error by PGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import Quantity, Subject, hookimpl


@dataclass(eq=False)
class RobustLossMeasure:
    """RLoss and RErr by PGD: for each example the largest loss over restarts; wrong clean or at any point of PGD.

    RLoss also over the examples that are classified correctly and incorrectly without an attack (`rloss_correct`,
    `rloss_incorrect`, the paper's Fig. 2); a table `per_example` is kept.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, section 2; protocol 1.1"

    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    restarts: Annotated[int, Field(ge=1, description="random starts")] = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        robust = subject.robust(self.steps, self.restarts)
        values = {"rloss": robust.loss, "rerr_pgd": robust.error}
        values |= {"rloss_correct": robust.loss_correct, "rloss_incorrect": robust.loss_incorrect}
        subject.keep("per_example", vars(robust.per_example))
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        both: dict[str, Any] = {"lower_is_better": True, "predictor": False}
        return {
            "rerr_pgd": Quantity("RErr (PGD)", "share", role="RErr", headline=True, **both),
            "rloss": Quantity("RLoss", "loss", role="RLoss", headline=True, **both),
            "rloss_correct": Quantity("RLoss, correct examples", "loss", role="RLoss, correct", **both),
            "rloss_incorrect": Quantity("RLoss, incorrect examples", "loss", role="RLoss, incorrect", **both),
        }

    def searches(self) -> list[tuple[int, int]]:
        return [(self.steps, self.restarts)]

    def passes(self) -> int:
        return 0
