"""Worst-case flatness, in the robust and in the clean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import hookimpl
from hookflat import worst_flatness as worst_flatness_of
from hookflat.functional.flatness import Flatness
from hookflat.recipe.options import Number
from hookflat.training.measuring import Subject
from hookflat_plugins.average_flatness import Xi, by_xi, radii

Attempts = Annotated[int, Field(ge=1, description="ascents from random points; the largest loss counts")]
Sweeps = Annotated[int, Field(ge=1, description="over the whole set, in each attempt")]
Step = Annotated[Number, Field(gt=0, description="of the weights, relative to the norm of each layer")]
Filters = Annotated[bool, Field(description="ball and steps relative to each filter of a convolution")]
Batch = Annotated[int, Field(ge=1, description="examples in a step of the ascent")]


@dataclass(eq=False)
class WorstFlatness:
    """Worst-case flatness: the largest RLoss that joint ascent on weights and inputs finds in the relative L2
    neighbourhood, minus RLoss. Lower is flatter.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, arXiv 2104.04448; protocol 1.6"

    xi: Xi = 0.00075
    attempts: Attempts = 10
    sweeps: Sweeps = 20
    weight_step_size: Step = 0.01
    batch_size: Batch = 128
    filters: Filters = False
    steps: Annotated[int, Field(ge=1, description="of PGD, for the reference")] = 20
    reference_restarts: Annotated[int, Field(ge=1, description="of the reference RLoss")] = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(self.steps, self.reference_restarts).loss
        found = worst_at(self, subject, "worst_flatness", reference=reference, robust=True)
        return by_xi("worst_flatness", self.xi, found)

    def passes(self) -> int:
        return (self.sweeps + 1) * self.attempts * len(radii(self.xi))


@dataclass(eq=False)
class CleanWorstFlatness:
    """Worst-case flatness of the clean loss: ascent on the weights alone, from which the sweep of largest mean loss
    counts.
    """

    paper: ClassVar[str] = "protocol of Stutz et al. 2021, section 1.7"

    xi: Xi = 0.00075
    attempts: Attempts = 10
    sweeps: Sweeps = 20
    weight_step_size: Step = 0.01
    batch_size: Batch = 128
    filters: Filters = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(steps=0, restarts=0).loss
        found = worst_at(self, subject, "clean_worst_flatness", reference=reference, robust=False)
        return by_xi("clean_worst_flatness", self.xi, found)

    def passes(self) -> int:
        return (self.sweeps + 1) * self.attempts * len(radii(self.xi))


def worst_at(plugin: Any, subject: Subject, name: str, **options: Any) -> list[Flatness]:
    """Worst-case flatness at every radius of the plugin."""
    options |= {
        key: getattr(plugin, key) for key in ("attempts", "sweeps", "weight_step_size", "batch_size", "filters")
    }
    options |= subject.attack
    model, examples = subject.model, subject.examples
    return [
        worst_flatness_of(model, examples, xi=xi, work=subject.work(f"{name} {xi:g}"), **options)
        for xi in radii(plugin.xi)
    ]
