"""The figures of what happens through a training: robust overfitting (Fig. 2) and flatness (Fig. 5)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from hookflat.functional.canvas import new_figure, tidy
from hookflat.recipe.tables import as_key
from hookflat.records.quantities import Role, of_role
from hookflat.reporting.phrases import listed
from hookflat.reporting.runs import MeasuredRun
from hookflat.reporting.settings import plain
from hookflat.reporting.style import TREND, Drawing
from hookflat.reporting.table import Row, Table1, representatives, short_title

TRAIN, TEST, CORRECT, INCORRECT = "#4f97d8", "#8a63d2", "#d1495b", "#4f9e2e"
PANELS = 24
"""How many methods Fig. 5 has at the most, to be read."""


def mean_overfitting(table: Table1, norm: str) -> Drawing:
    """Of the paper's baseline where it is there, otherwise of the configuration whose RLoss rises most at the end."""
    name, heading = "fig2", "Fig. 2: robust overfitting"
    alike = {row: _alike(row.configuration.runs, norm) for row in table.rows}
    with_curves = [row for row, runs in alike.items() if len(_mean_curve(runs, "test", "RLoss")[0]) > 1]
    if not with_curves:
        return Drawing(name, heading, f"No run has curves of RLoss through its training, in the norm {norm}.", None)

    def rise(row: Row) -> float:
        values = _mean_curve(alike[row], "test", "RLoss")[1]
        return values[-1] - min(values)

    row = next((r for r in with_curves if "baseline" in r.title), None) or max(with_curves, key=rise)
    runs = alike[row]
    figure = new_figure(8.6, 3.7)
    left, right = figure.subplots(1, 2)
    lines: tuple[tuple[str, Role, str, str], ...] = (
        ("train", "RLoss", TRAIN, "train"),
        ("test", "RLoss", TEST, "test"),
        ("test", "RLoss, correct", CORRECT, "test, correct"),
        ("test", "RLoss, incorrect", INCORRECT, "test, incorrect"),
    )
    for split, role, colour, text in lines:
        at, values = _mean_curve(runs, split, role)
        if at:
            left.plot(at, values, color=colour, lw=2 if role == "RLoss" else 1.3, label=text)
    for split, colour in (("train", TRAIN), ("test", TEST)):
        at, values = _mean_curve(runs, split, "RErr")
        if at:
            right.plot(at, [100 * v for v in values], color=colour, lw=2, label=split)
            if split == "test":
                right.axhline(100 * min(values), color=TREND, ls=":", lw=1.5, label="least on test")
    left.set(xlabel="share of the training", ylabel="RLoss", xlim=(0, 1.01))
    left.set_ylim(0, min(left.get_ylim()[1], 4 * max(_mean_curve(runs, "test", "RLoss")[1])))
    right.set(xlabel="share of the training", ylabel="RErr (PGD) in %", xlim=(0, 1.01), ylim=(0, None))
    for axes in (left, right):
        tidy(axes)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=8)
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    caption = (
        f"{row.title}, {seeds}, measured through the training; test RLoss also over the examples "
        "that are classified correctly and incorrectly without an attack."
        + _left_out([run for run in row.configuration.runs if run not in runs], runs)
        + _measured_by(runs[0], "RLoss")
    )
    return Drawing(name, heading, caption, figure)


def _recorded(run: MeasuredRun, role: Role) -> str:
    """The number of a role that was recorded through the training; "" where none was."""
    recorded = {key for record in run.records for key in record}
    return next((name for name in of_role(role, run.quantities) if name in recorded), "")


def _curve(run: MeasuredRun, split: str, role: Role) -> dict[float, float]:
    """A number by share of the training, from the stage that has it most often."""
    key = _recorded(run, role)
    stages: dict[str, dict[float, float]] = defaultdict(dict)
    for record in run.records:
        if record.get("split") == split and isinstance(record.get(key), int | float) and "epoch" in record:
            stages[str(record.get("stage"))][record["epoch"] / run.epochs] = record[key]
    return max(stages.values(), key=len, default={})


def _mean_curve(runs: Sequence[MeasuredRun], split: str, role: Role) -> tuple[list[float], list[float]]:
    """The mean over runs, at the shares of the training that all of them have."""
    curves = [curve for run in runs if (curve := _curve(run, split, role))]
    shared = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return shared, [fmean(curve[at] for curve in curves) for at in shared]


def through_training(table: Table1, norm: str) -> Drawing:
    """A panel for each method: flatness and RLoss of its snapshots, from blue (early) to red (late)."""
    name, heading = "fig5", "Fig. 5: flatness through the training"
    chosen = representatives(table.rows)
    measured = [run for row in chosen for run in row.configuration.runs if _paths([run])]
    alike = _alike(measured, norm)
    with_paths = [(row, _paths(runs)) for row in chosen if (runs := [r for r in row.configuration.runs if r in alike])]
    panels = with_paths[:PANELS]
    if not panels:
        return Drawing(
            name, heading, f"No run measured average-case flatness through its training, in the norm {norm}.", None
        )
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(2.1 * columns + 0.9, 1.85 * lines + 0.5)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    shares = Normalize(0, 1)
    every = [point for _, paths in panels for path in paths for point in path]
    for axes, (row, paths) in zip(grid.flat, panels, strict=False):
        for path in paths:
            share, x, y = zip(*path, strict=True)
            axes.plot(x, y, color="0.5", lw=0.6, zorder=1)
            axes.scatter(x, y, c=share, cmap="RdYlBu_r", norm=shares, s=15, edgecolor="0.5", lw=0.3, zorder=2)
        axes.set_title(short_title(row, [row]), fontsize=8.5)
        tidy(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    xlim, ylim = (_limits([(point[0], point[axis]) for point in every]) for axis in (1, 2))
    grid[0, 0].set(xlim=xlim, ylim=ylim)
    outside = sum(not (xlim[0] <= x <= xlim[1] and ylim[0] <= y <= ylim[1]) for _, x, y in every)
    figure.supxlabel("average-case flatness in RLoss (lower is flatter)", fontsize=9)
    figure.supylabel("RLoss (test)", fontsize=9)
    figure.colorbar(ScalarMappable(shares, "RdYlBu_r"), ax=grid, label="share of the training", aspect=40, pad=0.01)
    caption = (
        "Each point is a snapshot of a run, from early (blue) to late (red); a line joins those of one run."
        + (f" {outside} of {len(every)} snapshots lie outside the axes." if outside else "")
        + (f" The {PANELS} of {len(with_paths)} methods with the least test RErr." if len(with_paths) > PANELS else "")
        + _left_out([run for run in measured if run not in alike], alike)
        + _measured_by(alike[0], "average flatness")
    )
    return Drawing(name, heading, caption, figure)


def _alike(runs: Sequence[MeasuredRun], norm: str) -> list[MeasuredRun]:
    """Those whose training was measured under the threat of this norm that most of them share, and with its steps."""
    runs = [run for run in runs if _threat(run)["norm"] == norm]
    keys = Counter(as_key(_threat(run)) for run in runs)
    return [run for run in runs if as_key(_threat(run)) == keys.most_common(1)[0][0]]


def _threat(run: MeasuredRun) -> dict[str, Any]:
    table = run.recipe.get("eval", {})
    return {"norm": table.get("norm", "Linf"), "eps": table.get("eps"), "step_size": table.get("step_size")}


def _left_out(others: Sequence[MeasuredRun], alike: Sequence[MeasuredRun]) -> str:
    """Why some runs are not drawn."""
    if not others:
        return ""
    usual = _threat(alike[0])
    said = []
    for run in others:
        name, value = next((name, value) for name, value in _threat(run).items() if value != usual[name])
        said.append(f"{run.name} ({name} is {value}, {usual[name]} for the others)")
    return f" Left out, as measured otherwise through the training: {listed(said)}."


def _measured_by(run: MeasuredRun, role: Role) -> str:
    """How a number was measured through the training."""
    key = _recorded(run, role)
    stages = Counter(r.get("stage") for r in run.records if r.get("split") == "test" and key in r)
    stage = run.recipe.get("eval", {}).get(stages.most_common(1)[0][0], {}) if stages else {}
    parts = [
        f"{name} ({', '.join(f'{k} {plain(v)}' for k, v in table.items() if not isinstance(v, bool))})"
        for name, table in stage.items()
        if isinstance(table, dict) and table
    ]
    parts += [f"{stage['examples']} examples"] if "examples" in stage else []
    return f" Measured by {', '.join(parts)}; Table 1 by its own protocol." if parts else ""


def _paths(runs: Sequence[MeasuredRun]) -> list[list[tuple[float, float, float]]]:
    """(share of the training, flatness, RLoss) of each run's snapshots."""
    paths = []
    for run in runs:
        flatness, loss = _recorded(run, "average flatness"), _recorded(run, "RLoss")
        path = [
            (r["epoch"] / run.epochs, r[flatness], r[loss])
            for r in run.records
            if r.get("split") == "test" and {flatness, loss, "epoch"} <= r.keys()
        ]
        paths.append(sorted(p for p in path if all(map(math.isfinite, p))))
    return [path for path in paths if len(path) > 1]


def _limits(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of an axis, from (share of the training, value): the last fifth, and nearly all that comes after two fifths."""
    late, end = ([value for share, value in values if share >= least] for least in (0.4, 0.8))
    late = late or [value for _, value in values]
    high = max([float(np.percentile(late, 97)), *end])
    margin = 0.08 * (high - min(late) or 1)
    return min(late) - margin, high + margin
