"""The robust loss along directions in weight space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from hookflat import LANDSCAPE_RADIUS, Number, Subject, hookimpl, landscape, landscape_2d, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIGHT, _DARK, _MARK = "#5aa9e6", "#1b3a6b", "#c8312b"

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
        measured = landscape(
            subject.model,
            subject.examples,
            kind=self.kind,
            radius=self.radius,
            directions=self.directions,
            points=self.points,
            attack=subject.attack(self.steps),
            seed=subject.seed,
            work=subject.work("landscape"),
        )
        t = measured.at[:, 0]
        lines = range(self.directions)
        columns = (
            {"t": t} | {f"rloss_{i}": measured.loss[i] for i in lines} | {f"rerr_{i}": measured.error[i] for i in lines}
        )
        about = {"radius": length(self.kind, self.radius), "points": self.points, "steps": self.steps}
        subject.keep(f"landscape_{self.kind}", columns, examples=len(subject.examples), **about)
        subject.keep(
            f"landscape_{self.kind}", curves(t, measured.loss, f"t, in units of {unit(self.kind, self.radius)}")
        )
        return {}

    def passes(self) -> int:
        return self.directions * self.points * (self.steps + 3)


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
        measured = landscape_2d(
            subject.model,
            subject.examples,
            kind=self.kind,
            radius=self.radius,
            points=self.points,
            attack=subject.attack(self.steps),
            seed=subject.seed,
            work=subject.work("landscape_2d"),
        )
        s, t = measured.at.unbind(dim=1)
        subject.keep(f"landscape_2d_{self.kind}", {"s": s, "t": t, "rloss": measured.loss, "rerr": measured.error})
        subject.keep(f"landscape_2d_{self.kind}", contours(measured.at, measured.loss, unit(self.kind, self.radius)))
        return {}

    def passes(self) -> int:
        return self.points**2 * (self.steps + 3)


def length(kind: str, radius: float | None) -> float:
    """The relative length of a direction."""
    return LANDSCAPE_RADIUS[kind] if radius is None else radius


def unit(kind: str, radius: float | None) -> str:
    """The length of a direction, as an axis names it."""
    xi = length(kind, radius)
    return f"{'' if xi == 1 else f'{xi:g} '}||w|| of each {'filter' if kind == 'filter' else 'layer'}"


def curves(t: Tensor, losses: Tensor, label: str) -> Figure:
    """RLoss (directions, P) at the points `t` (P,) of each direction, and their mean (the paper's Fig. 4)."""
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    for line in losses.tolist():
        axes.plot(t.tolist(), line, color=_LIGHT, lw=0.8, alpha=0.5)
    axes.plot(t.tolist(), losses.mean(dim=0).tolist(), color=_DARK, lw=2, label="mean over directions")
    axes.set(xlabel=label, ylabel="RLoss", xlim=(float(t.min()), float(t.max())))
    tidy(axes)
    axes.legend(frameon=False)
    return figure


def contours(at: Tensor, loss: Tensor, unit: str) -> Figure:
    """RLoss (P,) on a square grid `at` (P, 2), as contours."""
    side = round(len(at) ** 0.5)
    s, t, z = (v.view(side, side).numpy() for v in (*at.unbind(dim=1), loss))
    from matplotlib.colors import LogNorm

    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    low, high = max(float(z.min()), 1e-3), float(z.max())
    levels = np.geomspace(low, max(high, 1.01 * low), 17)  # a loss grows exponentially away from the network
    z = z.clip(min=low)
    filled = axes.contourf(s, t, z, levels=levels, cmap="Blues", norm=LogNorm(), extend="min")
    lines = axes.contour(s, t, z, levels=levels[2::3], colors="0.25", linewidths=0.6)
    axes.clabel(lines, fontsize=7, fmt="%.2g")
    axes.plot(0, 0, "+", color=_MARK, ms=9, mew=1.8)
    axes.set(xlabel=f"first direction, in units of {unit}", ylabel="second direction", aspect="equal")
    figure.colorbar(filled, ax=axes, label="RLoss", format="%.3g", ticks=levels[::4])
    return figure
