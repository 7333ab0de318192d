"""Average-case flatness, in the robust and in the clean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import (
    Attack,
    Quantity,
    Radii,
    Subject,
    average_flatness,
    by_radius,
    hookimpl,
    quantities_by_radius,
    radii,
)


@dataclass(eq=False)
class AverageFlatness:
    """Average-case flatness: mean RLoss at random weights in the relative L2 neighbourhood, minus RLoss. Lower is
    flatter.

    `samples` perturbations on the sphere of relative radius `xi` in every layer, each with fresh adversarial examples.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, Eq. 1 and 2; protocol 1.4"

    xi: Radii = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 10
    steps: Annotated[int, Field(ge=1, description="of PGD, at every perturbation and for the reference")] = 20
    reference_restarts: Annotated[int, Field(ge=1, description="of the reference RLoss")] = 10
    filters: Annotated[bool, Field(description="radii relative to each filter of a convolution")] = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(self.steps, self.reference_restarts).loss
        return _measured(self, subject, "average_flatness", subject.attack(self.steps), reference)

    def numbers(self) -> dict[str, Quantity]:
        """What they are; the paper's radius comes first."""
        return quantities_by_radius(
            "average_flatness", "average-case flatness", self.xi, role="average flatness", paper=0.5
        )

    def searches(self) -> list[tuple[int, int]]:
        return [(self.steps, self.reference_restarts)]

    def passes(self) -> int:
        return (self.steps + 2) * self.samples * len(radii(self.xi))


@dataclass(eq=False)
class CleanAverageFlatness:
    """Average-case flatness of the clean loss: mean cross-entropy at random weights in the neighbourhood, minus that at
    the weights.
    """

    paper: ClassVar[str] = "protocol of Stutz et al. 2021, section 1.7"

    xi: Radii = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 50
    filters: Annotated[bool, Field(description="radii relative to each filter of a convolution")] = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(steps=0, restarts=0).loss
        return _measured(self, subject, "clean_average_flatness", subject.attack(restarts=0), reference)

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return quantities_by_radius("clean_average_flatness", "average-case flatness of the clean loss", self.xi)

    def searches(self) -> list[tuple[int, int]]:
        return [(0, 0)]

    def passes(self) -> int:
        return self.samples * len(radii(self.xi))


@dataclass(eq=False)
class FilterFlatness:
    """Filter-normalised flatness: average-case flatness with radii relative to each filter of a convolution.

    As in landscapes that are normalised by filter; `samples` perturbations, fresh adversarial examples at each.
    """

    paper: ClassVar[str] = "Li et al. 2018, arXiv 1712.09913; Stutz et al. 2021, Eq. 1, section 2.1"

    xi: Radii = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 10
    steps: Annotated[int, Field(ge=1, description="of PGD, at every perturbation and for the reference")] = 20
    reference_restarts: Annotated[int, Field(ge=1, description="of the reference RLoss")] = 10
    filters: ClassVar[bool] = True

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(self.steps, self.reference_restarts).loss
        return _measured(self, subject, "filter_flatness", subject.attack(self.steps), reference)

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return quantities_by_radius("filter_flatness", "filter-normalised flatness", self.xi)

    def searches(self) -> list[tuple[int, int]]:
        return [(self.steps, self.reference_restarts)]

    def passes(self) -> int:
        return (self.steps + 2) * self.samples * len(radii(self.xi))


def _measured(
    plugin: AverageFlatness | CleanAverageFlatness | FilterFlatness,
    subject: Subject,
    name: str,
    attack: Attack,
    reference: float,
) -> dict[str, float]:
    """Average-case flatness at every radius of the plugin, by name."""
    measured = [
        average_flatness(
            subject.model,
            subject.examples,
            xi=xi,
            samples=plugin.samples,
            filters=plugin.filters,
            attack=attack,
            reference=reference,
            seed=subject.seed,
            work=subject.work(f"{name} {xi:g}"),
        )
        for xi in radii(plugin.xi)
    ]
    return by_radius(name, plugin.xi, measured)
