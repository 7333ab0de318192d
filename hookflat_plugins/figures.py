"""The pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hookflat import Run, hookimpl, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EARLY = 0.1
"""Of the training: before it losses may be far from all that follows, and set no limits of the axes."""

_TRAIN, _TEST, _STOP = "#5aa9e6", "#1b3a6b", "#c8312b"


@dataclass(eq=False)
class Figures:
    """Robust overfitting over the epochs, and RLoss against flatness through the training."""

    paper: ClassVar[str] = "Stutz et al. 2021, Fig. 2 and Fig. 5"

    @hookimpl
    def draw(self, run: Run, records: list[dict[str, Any]]) -> dict[str, Figure]:
        best = run.best_epoch
        drawn = {
            "overfitting": overfitting(records, run.epochs, best),
            "flatness_through_training": flatness_through_training(records, run.epochs, best),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}


def curve(records: list[dict[str, Any]], split: str, key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one measure on one split, from the stage that has it most often."""
    stages: dict[str, list[tuple[int, float]]] = {}
    for r in records:
        if r.get("split") == split and key in r:
            stages.setdefault(r["stage"], []).append((r["epoch"], r[key]))
    points = max(stages.values(), key=len, default=[])
    return [e for e, _ in points], [v for _, v in points]


def overfitting(records: list[dict[str, Any]], epochs: int, best_epoch: int | None = None) -> Figure | None:
    """Train and test RLoss and RErr over normalised epochs, early stopping marked (the paper's Fig. 2)."""
    panels = [("rloss", "RLoss", 1.0), ("rerr_pgd", "RErr (PGD) in %", 100.0)]
    if not curve(records, "test", "rloss")[0]:
        return None
    figure = new_figure(9.0, 3.6)
    for axes, (key, label, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for split, colour in (("train", _TRAIN), ("test", _TEST)):
            at, values = curve(records, split, key)
            if at:
                axes.plot([e / epochs for e in at], [factor * v for v in values], color=colour, label=split, lw=2)
        at, values = curve(records, "test", key)
        if best_epoch is not None:
            axes.axvline(best_epoch / epochs, color=_STOP, ls=":", lw=1.5, label="early stopping")
            axes.plot(best_epoch / epochs, factor * np.interp(best_epoch, at, values), "o", color=_STOP, ms=6)
        settled = [
            factor * v
            for s in ("train", "test")
            for e, v in zip(*curve(records, s, key), strict=True)
            if e >= _EARLY * epochs
        ]
        axes.set(xlabel="share of the training", ylabel=label, xlim=(0, 1.01), ylim=(0, 1.25 * max(settled, default=1)))
        tidy(axes)
        axes.legend(frameon=False)
    return figure


def _focus(axes: Any, points: list[tuple[float, float]], late: list[bool]) -> int:
    """Limits that one early point far off does not set; how many points are outside of them."""
    values = np.array(points)
    settled = values[late] if sum(late) > 1 else values
    low, high = settled.min(axis=0), settled.max(axis=0)
    reach = 2 * np.maximum(high - low, 1e-3)
    near = ((values >= low - reach) & (values <= high + reach)).all(axis=1)
    low, high = values[near].min(axis=0), values[near].max(axis=0)
    margin = 0.12 * np.maximum(high - low, 1e-3)
    axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    return int((~near).sum())


def flatness_through_training(
    records: list[dict[str, Any]], epochs: int, best_epoch: int | None = None
) -> Figure | None:
    """Test RLoss against average-case flatness, one point a snapshot, coloured by epoch (the paper's Fig. 5)."""
    points = [r for r in records if r.get("split") == "test" and {"average_flatness", "rloss"} <= r.keys()]
    flat, robust = ({r["epoch"]: r[key] for r in points} for key in ("average_flatness", "rloss"))
    at = sorted(flat)
    if not at:
        return None
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    x, y = [flat[e] for e in at], [robust[e] for e in at]
    norm = Normalize(0, 1)
    axes.plot(x, y, color="0.8", lw=1, zorder=1)
    axes.scatter(x, y, c=[e / epochs for e in at], cmap="RdYlBu_r", norm=norm, s=55, edgecolor="0.2", lw=0.6, zorder=2)
    if best_epoch is not None:
        near = min(at, key=lambda epoch: abs(epoch - best_epoch))
        label = "early stopping" if near == best_epoch else f"near early stopping (epoch {best_epoch})"
        x, y = flat[near], robust[near]
        axes.scatter(x, y, s=170, facecolor="none", edgecolor=_STOP, lw=1.8, zorder=3, label=label)
        axes.legend(frameon=False)
    axes.set(xlabel="average-case flatness in RLoss (lower is flatter)", ylabel="test RLoss")
    outside = _focus(axes, [(flat[e], robust[e]) for e in at], [e > epochs / 4 for e in at])
    if outside:
        told = f"early snapshots outside: {outside}"
        axes.text(0.98, 0.02, told, transform=axes.transAxes, ha="right", color="0.4", size=8)
    tidy(axes)
    figure.colorbar(ScalarMappable(norm, "RdYlBu_r"), ax=axes, label="share of the training")
    return figure
