"""Worst-case flatness, in the robust and in the clean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Number, Quantity, Radii, Subject, by_radius, hookimpl, quantities_by_radius, radii, worst_flatness

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

    xi: Radii = 0.00075
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
        return _measured(self, subject, "worst_flatness", reference, robust=True)

    def numbers(self) -> dict[str, Quantity]:
        """What they are; the paper's radius comes first."""
        return quantities_by_radius(
            "worst_flatness", "worst-case flatness", self.xi, role="worst flatness", paper=0.00075
        )

    def searches(self) -> list[tuple[int, int]]:
        return [(self.steps, self.reference_restarts)]

    def passes(self) -> int:
        return (self.sweeps + 1) * self.attempts * len(radii(self.xi))


@dataclass(eq=False)
class CleanWorstFlatness:
    """Worst-case flatness of the clean loss: ascent on the weights alone, from which the sweep of largest mean loss
    counts.
    """

    paper: ClassVar[str] = "protocol of Stutz et al. 2021, section 1.7"

    xi: Radii = 0.00075
    attempts: Attempts = 10
    sweeps: Sweeps = 20
    weight_step_size: Step = 0.01
    batch_size: Batch = 128
    filters: Filters = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(steps=0, restarts=0).loss
        return _measured(self, subject, "clean_worst_flatness", reference, robust=False)

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return quantities_by_radius("clean_worst_flatness", "worst-case flatness of the clean loss", self.xi)

    def searches(self) -> list[tuple[int, int]]:
        return [(0, 0)]

    def passes(self) -> int:
        return (self.sweeps + 1) * self.attempts * len(radii(self.xi))


def _measured(
    plugin: WorstFlatness | CleanWorstFlatness, subject: Subject, name: str, reference: float, *, robust: bool
) -> dict[str, float]:
    """Worst-case flatness at every radius of the plugin, by name."""
    measured = [
        worst_flatness(
            subject.model,
            subject.examples,
            xi=xi,
            attempts=plugin.attempts,
            sweeps=plugin.sweeps,
            weight_step_size=plugin.weight_step_size,
            batch_size=plugin.batch_size,
            filters=plugin.filters,
            robust=robust,
            attack=subject.attack(),
            reference=reference,
            seed=subject.seed,
            work=subject.work(f"{name} {xi:g}"),
        )
        for xi in radii(plugin.xi)
    ]
    return by_radius(name, plugin.xi, measured)
