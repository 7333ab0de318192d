"""PGD that stops early, as in friendly adversarial training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Number, Objective, Run, Share, hookimpl, pgd_tau


@dataclass(eq=False)
class PgdTau(InnerAttack):
    """PGD-tau, friendly AT: an example stops moving `tau` steps after it is first misclassified.

    Every misclassified iterate uses up one of `tau` further steps; one that is never misclassified takes all `steps`.
    The iterate where it stopped is returned (the paper's released code returns the clean image for examples that were
    never misclassified). `grows` adds one to tau at each share of the training (the original: tau 0, 5/12 and 3/4).
    """

    paper: ClassVar[str] = "Zhang et al. 2020, arXiv 2002.11242, Alg. 1; protocol of Stutz et al. 2021, section 4.6"
    excludes: ClassVar[dict[str, str]] = {
        "self_supervision": "its stopping rule asks for the class, which the rotation task does not predict"
    }

    tau: Annotated[int, Field(ge=0, description="steps after the first misclassified iterate")] = 0
    grows: Annotated[list[Share], Field(description="shares of the training")] = field(default_factory=list)
    noise: Annotated[Number, Field(ge=0, description="of each step, Gaussian (omega; 0.001 in the original)")] = 0.0

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        tau = self.tau + sum(run.step >= share * run.total_steps for share in self.grows)
        options: dict[str, Any] = {"tau": tau, "noise": self.noise, "attack": self.attack()}
        options |= self.options(run, batch)
        return pgd_tau(self.attacked(run), batch.x, batch.y, objective=objective, **options)
