"""Average-case flatness, in the robust and in the clean loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import average_flatness as average_flatness_of
from hookflat import hookimpl
from hookflat.functional.flatness import Flatness
from hookflat.recipe.options import Number
from hookflat.training.measuring import Subject

Xi = Annotated[
    list[Annotated[Number, Field(ge=0)]] | Annotated[Number, Field(ge=0)],
    Field(description="radius, relative to the L2 norm of each layer, or a list of radii"),
]


def by_xi(name: str, xi: list[float] | float, found: list[Flatness]) -> dict[str, float]:
    """A measure's numbers: `name` and its standard error; `name_xi0.5` and so on where there are several radii."""
    values = {}
    for radius, flatness in zip(radii(xi), found, strict=True):
        key = f"{name}_xi{radius:g}" if isinstance(xi, list) else name
        values[key] = flatness.flatness
        if len(flatness.losses) > 1:
            values[f"{key}_stderr"] = flatness.standard_error
    return values


def radii(xi: list[float] | float) -> list[float]:
    """One radius, or several, as a list."""
    return xi if isinstance(xi, list) else [xi]


@dataclass(eq=False)
class AverageFlatness:
    """Average-case flatness: mean RLoss at random weights in the relative L2 neighbourhood, minus RLoss. Lower is
    flatter.

    `samples` perturbations on the sphere of relative radius `xi` in every layer, each with fresh adversarial examples.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, Eq. 1 and 2; protocol 1.4"

    xi: Xi = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 10
    steps: Annotated[int, Field(ge=1, description="of PGD, at every perturbation and for the reference")] = 20
    reference_restarts: Annotated[int, Field(ge=1, description="of the reference RLoss")] = 10
    filters: Annotated[bool, Field(description="radii relative to each filter of a convolution")] = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(self.steps, self.reference_restarts).loss
        found = average_at(self, subject, "average_flatness", reference=reference, steps=self.steps)
        return by_xi("average_flatness", self.xi, found)

    def passes(self) -> int:
        return (self.steps + 1) * self.samples * len(radii(self.xi))


@dataclass(eq=False)
class CleanAverageFlatness:
    """Average-case flatness of the clean loss: mean cross-entropy at random weights in the neighbourhood, minus that at
    the weights.
    """

    paper: ClassVar[str] = "protocol of Stutz et al. 2021, section 1.7"

    xi: Xi = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 50
    filters: Annotated[bool, Field(description="radii relative to each filter of a convolution")] = False

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        reference = subject.robust(steps=0, restarts=0).loss
        found = average_at(self, subject, "clean_average_flatness", reference=reference, restarts=0)
        return by_xi("clean_average_flatness", self.xi, found)

    def passes(self) -> int:
        return self.samples * len(radii(self.xi))


def average_at(plugin: Any, subject: Subject, name: str, **options: Any) -> list[Flatness]:
    """Average-case flatness at every radius of the plugin."""
    options |= {"samples": plugin.samples, "filters": plugin.filters} | subject.attack
    model, examples = subject.model, subject.examples
    return [
        average_flatness_of(model, examples, xi=xi, work=subject.work(f"{name} {xi:g}"), **options)
        for xi in radii(plugin.xi)
    ]
