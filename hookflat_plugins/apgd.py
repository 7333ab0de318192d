"""APGD on the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Objective, Run, Start, apgd, hookimpl


@dataclass(eq=False)
class Apgd(InnerAttack):
    """APGD, AutoAttack's PGD without a step size: steps begin at 2 eps and are halved where the objective oscillates.

    The best iterate is kept; `steps` cost one pass more than those of `pgd`. `step_size` and `alpha` play no part. In
    L1 steps go along few values (`norm`). The start is uniform in the ball (AutoAttack's lies on its boundary).
    """

    paper: ClassVar[str] = "Croce and Hein 2020, arXiv 2003.01690, Alg. 1; 2021, arXiv 2103.01208 (L1)"

    start: Annotated[Start, Field(description="the paper's of flatness, Madry's, TRADES's, or none")] = "uniform"
    restarts: Annotated[int, Field(ge=1, description="random starts")] = 1

    @property
    def reach(self) -> float:
        """Its first step leads through the whole ball."""
        return 2.0 if self.steps else 0.0

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        attack, options = self.attack(restarts=self.restarts), self.options(run, batch)
        return apgd(self.attacked(run), batch.x, attack=attack, objective=objective, **options)
