"""Average-case flatness in RLoss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import average_flatness as average_flatness_of
from hookflat import hookimpl
from hookflat.measuring import Subject
from hookflat.options import Number


@dataclass(eq=False)
class AverageFlatness:
    """Average-case flatness: mean RLoss at random weights in the relative L2 neighbourhood, minus RLoss. Lower is
    flatter.

    `samples` perturbations on the sphere of relative radius `xi` in every layer, each with fresh adversarial examples.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, Eq. 1 and 2; protocol 1.4"

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer")] = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 10
    steps: Annotated[int, Field(ge=1, description="of PGD, at every perturbation and for the reference")] = 20
    reference_restarts: Annotated[int, Field(ge=1, description="of the reference RLoss")] = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(self.steps, self.reference_restarts).loss
        found = average_flatness_of(
            subject.model,
            subject.examples,
            xi=self.xi,
            samples=self.samples,
            eps=subject.eps,
            step_size=subject.step_size,
            steps=self.steps,
            reference=reference,
            seed=subject.seed,
        )
        values = {"average_flatness": found.flatness}
        return values | ({"average_flatness_stderr": found.standard_error} if self.samples > 1 else {})
