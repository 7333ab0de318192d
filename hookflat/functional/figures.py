"""The pictures of a run, from the lines of its metrics.jsonl."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

_TRAIN, _TEST, _STOP = "#5aa9e6", "#1b3a6b", "#c8312b"


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
            if e >= 0.1 * epochs
        ]
        axes.set(xlabel="share of the training", ylabel=label, xlim=(0, 1.01), ylim=(0, 1.25 * max(settled, default=1)))
        tidy(axes)
        axes.legend(frameon=False)
    return figure


def flatness_through_training(
    records: list[dict[str, Any]], epochs: int, best_epoch: int | None = None
) -> Figure | None:
    """Test RLoss against average-case flatness, one point a snapshot, coloured by epoch (the paper's Fig. 5)."""
    points = [r for r in records if r.get("split") == "test" and {"average_flatness", "rloss"} <= r.keys()]
    flat, robust = ({r["epoch"]: r[key] for r in points} for key in ("average_flatness", "rloss"))
    at = sorted(flat)
    if not at:
        return None
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
    axes.margins(0.12)
    tidy(axes)
    figure.colorbar(ScalarMappable(norm, "RdYlBu_r"), ax=axes, label="share of the training")
    return figure


def curves(t: Tensor, losses: Tensor, label: str) -> Figure:
    """RLoss (directions, P) at the points `t` (P,) of each direction, and their mean (the paper's Fig. 4)."""
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    for line in losses.tolist():
        axes.plot(t.tolist(), line, color=_TRAIN, lw=0.8, alpha=0.5)
    axes.plot(t.tolist(), losses.mean(dim=0).tolist(), color=_TEST, lw=2, label="mean over directions")
    axes.set(xlabel=label, ylabel="RLoss", xlim=(float(t.min()), float(t.max())))
    tidy(axes)
    axes.legend(frameon=False)
    return figure


def contours(at: Tensor, loss: Tensor, unit: str) -> Figure:
    """RLoss (P,) on a square grid `at` (P, 2), as contours."""
    side = round(len(at) ** 0.5)
    s, t, z = (v.view(side, side).numpy() for v in (*at.unbind(dim=1), loss))
    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    low, high = max(float(z.min()), 1e-3), float(z.max())
    levels = np.geomspace(low, max(high, 1.01 * low), 17)  # a loss grows exponentially away from the network
    z = z.clip(min=low)
    filled = axes.contourf(s, t, z, levels=levels, cmap="Blues", norm=LogNorm(), extend="min")
    lines = axes.contour(s, t, z, levels=levels[2::3], colors="0.25", linewidths=0.6)
    axes.clabel(lines, fontsize=7, fmt="%.2g")
    axes.plot(0, 0, "+", color=_STOP, ms=9, mew=1.8)
    axes.set(xlabel=f"first direction, in units of {unit}", ylabel="second direction", aspect="equal")
    figure.colorbar(filled, ax=axes, label="RLoss", format="%.3g", ticks=levels[::4])
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Any) -> None:
    """A light grid behind, no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", lw=0.8)
    axes.set_axisbelow(True)
