"""The robust loss along directions in weight space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hookflat import hookimpl, landscape, landscape_2d
from hookflat.functional.figures import contours, curves
from hookflat.functional.landscapes import RADIUS
from hookflat.recipe.options import Number
from hookflat.training.measuring import Subject

Kind = Annotated[Literal["layer", "filter", "adversarial"], Field(description="of the directions")]
Radius = Annotated[Number | None, Field(ge=0, description="relative length of a direction; none: 0.5, 1, 0.01 by kind")]
Steps = Annotated[int, Field(ge=1, description="of PGD, at every point")]


@dataclass(eq=False)
class LandscapeMeasure:
    """RLoss along random or adversarial directions in weight space, attacked anew at every point.

    layer: each layer of a relative length; filter: each filter (Li et al. 2018); adversarial: ascent of the robust
    loss. Gives no number: a table is kept, and a figure with every direction and their mean.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, Fig. 4; Li et al. 2018, arXiv 1712.09913"

    kind: Kind = "layer"
    radius: Radius = None
    directions: Annotated[int, Field(ge=1, description="how many")] = 10
    points: Annotated[int, Field(ge=3, description="from -1 to 1 along each; odd numbers have 0 among them")] = 51
    steps: Steps = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        found = landscape(
            subject.model,
            subject.examples,
            kind=self.kind,
            radius=self.radius,
            directions=self.directions,
            points=self.points,
            steps=self.steps,
            work=subject.work("landscape"),
            **subject.attack,
        )
        t = found.at[:, 0]
        lines = range(self.directions)
        columns = {"t": t} | {f"rloss_{i}": found.loss[i] for i in lines} | {f"rerr_{i}": found.error[i] for i in lines}
        subject.keep(f"landscape_{self.kind}", columns)
        subject.keep(f"landscape_{self.kind}", curves(t, found.loss, f"t, in units of {unit(self.kind, self.radius)}"))
        return {}

    def passes(self) -> int:
        return self.directions * self.points * (self.steps + 1)


@dataclass(eq=False)
class Landscape2dMeasure:
    """RLoss on a plane of two directions in weight space, attacked anew at every point, drawn as contours."""

    paper: ClassVar[str] = "Li et al. 2018, arXiv 1712.09913"

    kind: Kind = "filter"
    radius: Radius = None
    points: Annotated[int, Field(ge=3, description="on each side of the grid; odd numbers have the network in it")] = 21
    steps: Steps = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        found = landscape_2d(
            subject.model,
            subject.examples,
            kind=self.kind,
            radius=self.radius,
            points=self.points,
            steps=self.steps,
            work=subject.work("landscape_2d"),
            **subject.attack,
        )
        s, t = found.at.unbind(dim=1)
        subject.keep(f"landscape_2d_{self.kind}", {"s": s, "t": t, "rloss": found.loss, "rerr": found.error})
        subject.keep(f"landscape_2d_{self.kind}", contours(found.at, found.loss, unit(self.kind, self.radius)))
        return {}

    def passes(self) -> int:
        return self.points**2 * (self.steps + 1)


def unit(kind: str, radius: float | None) -> str:
    """The length of a direction, as an axis names it."""
    xi = RADIUS[kind] if radius is None else radius
    return f"{'' if xi == 1 else f'{xi:g} '}||w|| of each {'filter' if kind == 'filter' else 'layer'}"
