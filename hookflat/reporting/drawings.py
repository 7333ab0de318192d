"""The paper's figures from measured runs. Colours are chosen to be read on white and on black."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from hookflat.figures import new_figure, tidy
from hookflat.reporting.analysis import name_of, outcome
from hookflat.reporting.gathering import Configuration, Gathered, plain
from hookflat.reporting.labels import label
from hookflat.reporting.runs import Network, Run, distinct
from hookflat.reporting.statistics import line
from hookflat.reporting.table import Row, Table1, title

INK, PAGE, GRID = "#1f2328", "#fefefe", "#ebebeb"
"""Text and axes, the page behind, and `tidy`'s grid: what a dark page changes."""
COLOURS = {"good": "#1a9e88", "average": "#b8860b", "poor": "#d1495b", "": "#7d8794"}
MARKERS = {"good": "o", "average": "s", "poor": "D", "": "p"}
CYCLE = ("#3b82c4", "#d1495b", "#1a9e88", "#b8860b", "#8e6bbf", "#5f9e2e", "#c2689b", "#6b7785", "#2aa7b8", "#b5651d")
TREND = "#d1495b"
NAMED, PANELS = 40, 24
"""How many labels and panels a figure has at the most, to be read."""
TRAIN, TEST, CORRECT, INCORRECT = "#5aa9e6", "#3a66b0", "#d1495b", "#4f9e2e"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its title and caption; `figure` None where the runs have no data for it, `caption` says what."""

    name: str
    title: str
    caption: str
    figure: Figure | None


def drawings(gathered: Gathered, table: Table1) -> list[Drawing]:
    """Every figure, in the paper's order."""
    error = f"RErr ({table.attack})"
    return [
        _scatter(table, "fig1", table.average, "rloss", "Fig. 1: RLoss against average-case flatness"),
        _scatter(table, "fig1_worst", table.worst, "rloss", "RLoss against worst-case flatness"),
        _scatter(table, "fig1_gap", table.average, "rloss gap", "Generalization gap against average-case flatness"),
        _overfitting(table),
        _landscapes(gathered, table.error),
        _through_training(table),
        _trends(table),
        _kink(gathered, table, error),
    ]


_AXES = {"rloss": "RLoss (test)", "rloss gap": "gap of RLoss (test minus train)"}


def _scatter(table: Table1, name: str, x: str, y: str, heading: str) -> Drawing:
    """A point for every run, a larger one for the mean of a configuration, labelled by method."""
    rows = [(row, points) for row in table.rows if (points := _points(row.configuration, x, y))]
    if not rows:
        return Drawing(name, heading, f"No run has both {name_of(x)} and {_AXES[y]}.", None)
    figure = new_figure(7.2, 5.0)
    axes = figure.subplots()
    chosen = representatives([row for row, _ in rows])
    labelled = chosen if len(chosen) <= NAMED else [*chosen[: NAMED // 2], *chosen[-NAMED // 2 :]]
    single = [(p[1], p[2]) for _, points in rows for p in points]
    models = [(p[1], p[2]) for row, points in rows for p in points if not row.configuration.rescaled]
    named: list[tuple[float, float]] = []
    for row, points in rows:
        shown = row in chosen
        mean = (fmean(p[1] for p in points), fmean(p[2] for p in points))
        runs, xs, ys = zip(*points, strict=True)
        marker = "^" if not runs[0].trained_here else MARKERS[row.group]
        colour = COLOURS[row.group] if shown else "0.6"
        small = len(points) > 1 or not shown
        dots = axes.scatter(xs, ys, s=12 if small else 42, c=colour, marker=marker, alpha=0.7 if small else 1, lw=0)
        dots.set_urls([f"#{run.anchor}" for run in runs])
        if len(points) > 1 and shown:
            big = axes.scatter(*mean, s=46, c=colour, marker=marker, edgecolor=PAGE, lw=0.8, zorder=3)
            big.set_urls([f"#{row.configuration.anchor}"])
        if row in labelled:
            named.append(mean)
    _least_squares(axes, models)
    axes.set(xlabel=f"{name_of(x)} in RLoss (lower is flatter)", ylabel=_AXES[y])
    axes.margins(0.12)
    tidy(axes)
    _name_groups(axes, {row.group for row, _ in rows})
    axes.legend(frameon=False, title="robustness", fontsize=8, title_fontsize=8, loc="best")
    texts = [_short(row, chosen) for row, _ in rows if row in labelled]
    seeds = any(len(points) > 1 for _, points in rows)
    label(figure, axes, named, texts, single, halo=PAGE)
    caption = (
        "Each small point is a run, each large one the mean of its seeds" if seeds else "Each point is a run"
    ) + "; colour and shape are the groups of Table 1. The dotted line is a least-squares fit through the runs."
    if len(labelled) < len(chosen):
        caption += f" Labelled: the {NAMED // 2} methods of least test RErr and the {NAMED // 2} of largest."
    if len(models) < len(single):
        caption += " Pentagons: rescaled networks, which the line leaves out."
    if len(chosen) < len(rows):
        caption += " Grey: other hyper-parameters of a method; the one of least test RErr is labelled."
    if any(not run.trained_here for row, _ in rows for run in row.configuration.runs):
        caption += " Triangles: networks trained elsewhere."
    return Drawing(name, heading, caption, figure)


def _name_groups(axes: Any, present: set[str]) -> None:
    """Entries of the legend."""
    for group in ("good", "average", "poor"):
        if group in present:
            axes.scatter([], [], c=COLOURS[group], marker=MARKERS[group], s=30, label=group)


def representatives(rows: Sequence[Row]) -> list[Row]:
    """For each method the configuration of the least mean test RErr; rescaled networks stand for themselves."""
    first: dict[tuple[str, float | None], Row] = {}
    for row in rows:  # by test RErr
        first.setdefault((row.configuration.method, row.configuration.rescaled), row)
    return list(first.values())


def _short(row: Row, chosen: Sequence[Row]) -> str:
    """The title without hyper-parameters, where it is the only one of its method."""
    alone = sum(other.configuration.method == row.configuration.method for other in chosen) == 1
    return row.title.split(", ")[0] if alone else row.title


def _value(network: Network, key: str) -> float:
    return network.test.get(key, math.nan) if "flatness" in key else outcome(network, key)


def _points(configuration: Configuration, x: str, y: str, label: str = "last") -> list[tuple[Run, float, float]]:
    networks = [(run, run.networks[label]) for run in configuration.runs if label in run.networks]
    points = [(run, _value(network, x), _value(network, y)) for run, network in networks]
    return [p for p in points if math.isfinite(p[1] + p[2])]


def _least_squares(axes: Any, points: Sequence[tuple[float, float]], colour: Any = TREND) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    if len(x) > 2 and (fit := line(x, y)):
        ends = [min(x), max(x)]
        axes.plot(ends, [fit[0] * e + fit[1] for e in ends], color=colour, ls=":", lw=1.6, zorder=1.2)


def _curve(run: Run, split: str, key: str) -> dict[float, float]:
    """A number by share of the training, from the stage that has it most often."""
    stages: dict[str, dict[float, float]] = defaultdict(dict)
    for record in run.records:
        if record.get("split") == split and isinstance(record.get(key), int | float) and "epoch" in record:
            stages[str(record.get("stage"))][record["epoch"] / run.epochs] = record[key]
    return max(stages.values(), key=len, default={})


def _mean_curve(runs: Sequence[Run], split: str, key: str) -> tuple[list[float], list[float]]:
    """The mean over runs, at the shares of the training that all of them have."""
    curves = [curve for run in runs if (curve := _curve(run, split, key))]
    shared = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return shared, [fmean(curve[at] for curve in curves) for at in shared]


def _overfitting(table: Table1) -> Drawing:
    """Of the paper's baseline where it is there, otherwise of the configuration whose RLoss rises most at the end."""
    name, heading = "fig2", "Fig. 2: robust overfitting"
    with_curves = [r for r in table.rows if len(_mean_curve(r.configuration.runs, "test", "rloss")[0]) > 1]
    if not with_curves:
        return Drawing(name, heading, "No run has curves of RLoss through its training.", None)

    def rise(row: Row) -> float:
        values = _mean_curve(row.configuration.runs, "test", "rloss")[1]
        return values[-1] - min(values)

    row = next((r for r in with_curves if "baseline" in r.title), None) or max(with_curves, key=rise)
    runs = row.configuration.runs
    figure = new_figure(8.6, 3.7)
    left, right = figure.subplots(1, 2)
    lines = (("train", "rloss", TRAIN, "train"), ("test", "rloss", TEST, "test"))
    lines += (
        ("test", "rloss_correct", CORRECT, "test, correct"),
        ("test", "rloss_incorrect", INCORRECT, "test, incorrect"),
    )
    for split, key, colour, text in lines:
        at, values = _mean_curve(runs, split, key)
        if at:
            left.plot(at, values, color=colour, lw=2 if key == "rloss" else 1.3, label=text)
    for split, colour in (("train", TRAIN), ("test", TEST)):
        at, values = _mean_curve(runs, split, "rerr_pgd")
        if at:
            right.plot(at, [100 * v for v in values], color=colour, lw=2, label=split)
            if split == "test":
                right.axhline(100 * min(values), color=TREND, ls=":", lw=1.5, label="least on test")
    left.set(xlabel="share of the training", ylabel="RLoss", xlim=(0, 1.01))
    left.set_ylim(0, min(left.get_ylim()[1], 4 * max(_mean_curve(runs, "test", "rloss")[1])))
    right.set(xlabel="share of the training", ylabel="RErr (PGD) in %", xlim=(0, 1.01), ylim=(0, None))
    for axes in (left, right):
        tidy(axes)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=8)
    caption = (
        f"{row.title}, mean of {len(runs)} seed(s), measured through the training; test RLoss also over the examples "
        "that are classified correctly and incorrectly without an attack." + _measured_by(runs[0], "rloss")
    )
    return Drawing(name, heading, caption, figure)


def _landscapes(gathered: Gathered, error: str) -> Drawing:
    """The mean over directions, and over the seeds of a configuration."""
    name, heading = "fig4", "Fig. 4: RLoss along random directions in weight space"
    if not gathered.landscapes:
        return Drawing(name, heading, "No run has landscapes: hookflat eval RUN --protocol landscapes.", None)
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for i, configuration in enumerate(gathered.landscapes):
        lines = [run.landscape for run in configuration.runs if run.landscape]
        loss = np.mean([landscape.rloss for landscape in lines], axis=0)
        networks = [run.networks.get("last") for run in configuration.runs]
        measured = [n.test[error] for n in networks if n and error in n.test]
        share = fmean(measured or [landscape.rerr for landscape in lines])
        style, colour = "--" if configuration.rescaled else "-", CYCLE[i % len(CYCLE)]
        text = f"{title(configuration)} ({100 * share:.1f} %)"
        axes.plot(lines[0].t, loss, style, color=colour, lw=1.7, label=text)
    radius = lines[0].radius
    axes.set(xlabel=f"t, in units of xi = {radius:g} relative to each layer", ylabel="RLoss (test)", xlim=(-1, 1))
    tidy(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2, title="RErr in brackets", title_fontsize=8)
    caption = (
        f"Mean over {lines[0].directions} direction(s). "
        "Adversarial examples are made anew at every point of every direction; weights are perturbed layer by layer, "
        "relative to their norm. RErr in brackets is that of Table 1, or else of the landscape's own attack at t = 0. "
        "Dashed: functionally equal networks of another scale."
    )
    return Drawing(name, heading, caption, figure)


def _through_training(table: Table1) -> Drawing:
    """A panel for each method: flatness and RLoss of its snapshots, from blue (early) to red (late)."""
    name, heading = "fig5", "Fig. 5: flatness through the training"
    found = [(row, paths) for row in representatives(table.rows) if (paths := _paths(row.configuration.runs))]
    panels = found[:PANELS]
    if not panels:
        return Drawing(name, heading, "No run measured average-case flatness through its training.", None)
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(2.1 * columns + 0.9, 1.85 * lines + 0.5)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    norm = Normalize(0, 1)
    every = [point for _, paths in panels for path in paths for point in path]
    for axes, (row, paths) in zip(grid.flat, panels, strict=False):
        for path in paths:
            share, x, y = zip(*path, strict=True)
            axes.plot(x, y, color="0.7", lw=0.6, zorder=1)
            axes.scatter(x, y, c=share, cmap="RdYlBu_r", norm=norm, s=15, edgecolor="0.35", lw=0.3, zorder=2)
        axes.set_title(_short(row, [row]), fontsize=8.5)
        tidy(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    xlim, ylim = (_limits([(point[0], point[axis]) for point in every]) for axis in (1, 2))
    grid[0, 0].set(xlim=xlim, ylim=ylim)
    outside = sum(not (xlim[0] <= x <= xlim[1] and ylim[0] <= y <= ylim[1]) for _, x, y in every)
    figure.supxlabel("average-case flatness in RLoss (lower is flatter)", fontsize=9)
    figure.supylabel("RLoss (test)", fontsize=9)
    figure.colorbar(ScalarMappable(norm, "RdYlBu_r"), ax=grid, label="share of the training", aspect=40, pad=0.01)
    caption = (
        "Each point is a snapshot of a run, from early (blue) to late (red); a line joins those of one run."
        + (f" {outside} of {len(every)} snapshots lie outside the axes." if outside else "")
        + (f" The {PANELS} of {len(found)} methods with the least test RErr." if len(found) > PANELS else "")
        + _measured_by(panels[0][0].configuration.runs[0], "average_flatness")
    )
    return Drawing(name, heading, caption, figure)


def _measured_by(run: Run, key: str) -> str:
    """How a number was measured through the training."""
    stages = Counter(r.get("stage") for r in run.records if r.get("split") == "test" and key in r)
    stage = run.recipe.get("eval", {}).get(stages.most_common(1)[0][0], {}) if stages else {}
    attack, flatness = stage.get("robust_loss", {}), stage.get("average_flatness", {})
    parts = (
        [f"PGD-{attack['steps']} with {attack['restarts']} restart(s)"]
        if {"steps", "restarts"} <= attack.keys()
        else []
    )
    parts += [f"{flatness['samples']} perturbations"] if "samples" in flatness else []
    parts += [f"{stage['examples']} examples"] if "examples" in stage else []
    return f" Measured by {', '.join(parts)}; Table 1 by its own protocol." if parts else ""


def _paths(runs: Sequence[Run]) -> list[list[tuple[float, float, float]]]:
    """(share of the training, flatness, RLoss) of each run's snapshots."""
    found = []
    for run in runs:
        path = [
            (r["epoch"] / run.epochs, r["average_flatness"], r["rloss"])
            for r in run.records
            if r.get("split") == "test" and {"average_flatness", "rloss", "epoch"} <= r.keys()
        ]
        found.append(sorted(p for p in path if all(map(math.isfinite, p))))
    return [path for path in found if len(path) > 1]


def _limits(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of an axis, from (share of the training, value): the last fifth, and nearly all that comes after two fifths."""
    late, end = ([value for share, value in values if share >= least] for least in (0.4, 0.8))
    late = late or [value for _, value in values]
    high = max([float(np.percentile(late, 97)), *end])
    margin = 0.08 * (high - min(late) or 1)
    return min(late) - margin, high + margin


def _trends(table: Table1) -> Drawing:
    """Methods with several hyper-parameters: a shade for each value, and a line."""
    name, heading = "fig6", "Fig. 6: trends over hyper-parameters"
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.configuration.rescaled:
            continue
        if row.configuration.setting and _points(row.configuration, table.average, "rloss"):
            by_method[row.configuration.method].append(row)
    by_method = {method: rows for method, rows in by_method.items() if len(rows) > 2}
    if not by_method:
        return Drawing(name, heading, "No method was trained with three values of a hyper-parameter or more.", None)
    figure = new_figure(7.2, 5.0)
    axes = figure.subplots()
    for i, rows in enumerate(by_method.values()):
        rows.sort(key=lambda row: [(v is not None, _order(v)) for _, v in row.configuration.setting])
        colour = np.array(to_rgb(CYCLE[i % len(CYCLE)]))
        every: list[tuple[float, float]] = []
        for j, row in enumerate(rows):
            points = _points(row.configuration, table.average, "rloss")
            shade = colour + (1 - colour) * 0.65 * (1 - j / (len(rows) - 1))
            runs, x, y = zip(*points, strict=True)
            dots = axes.scatter(x, y, color=[shade] * len(x), s=40, edgecolor=tuple(colour), lw=0.7, zorder=2)
            dots.set_urls([f"#{run.anchor}" for run in runs])
            every += zip(x, y, strict=True)
        _least_squares(axes, every, tuple(colour))
        axes.scatter([], [], color=[colour], s=30, label=_range(rows))
    axes.set(xlabel="average-case flatness in RLoss (lower is flatter)", ylabel="RLoss (test)")
    axes.margins(0.08)
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    caption = (
        "Light to dark: from the first value of a hyper-parameter to the last; least-squares lines of each method."
    )
    return Drawing(name, heading, caption, figure)


def _order(value: Any) -> Any:
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _range(rows: Sequence[Row]) -> str:
    """ "TRADES, beta 1 to 9"."""
    first, last = rows[0].configuration.setting, rows[-1].configuration.setting
    spans = [f"{k.split('.')[-1]} {plain(a)} to {plain(b)}" for (k, a), (_, b) in zip(first, last, strict=True)]
    return ", ".join([rows[0].title.split(", ")[0], *spans])


def _kink(gathered: Gathered, table: Table1, error: str) -> Drawing:
    """RErr against RLoss of all networks, with a line on each side of log K."""
    name, heading = "fig7", f"Fig. 7: {error} against RLoss"
    points = [
        (run, label_, n.test["rloss"], 100 * n.test[table.error])
        for run, label_, n in distinct(gathered.runs)
        if {"rloss", table.error} <= n.test.keys()
    ]
    if not points:
        return Drawing(name, heading, f"No run has both RLoss and {error}.", None)
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    group = {id(run): row.group for row in table.rows for run in row.configuration.runs}
    _name_groups(axes, {group[id(p[0])] for p in points})
    for kind, text in (("last", "last"), ("", "early stopped")):
        for which, colour in COLOURS.items():
            chosen = [p for p in points if (p[1] == "last") == bool(kind) and group[id(p[0])] == which]
            if chosen:
                dots: Any = axes.scatter(
                    [p[2] for p in chosen],
                    [p[3] for p in chosen],
                    s=24,
                    marker=MARKERS[which],
                    edgecolor=colour,
                    facecolor=colour if kind else "none",
                    lw=0.9,
                )
                dots.set_urls([f"#{p[0].anchor}" for p in chosen])
        if any((p[1] == "last") == bool(kind) for p in points):
            axes.scatter([], [], s=24, edgecolor="0.5", facecolor="0.5" if kind else "none", label=text)
    caption = (
        "All networks, the last and the early-stopped ones, the same weights once; colour and shape are the groups of "
        "Table 1."
    )
    if gathered.classes:
        kink = math.log(gathered.classes)
        axes.axvline(kink, color="0.6", lw=0.9, ls="--", label=f"log {gathered.classes}: guessing")
        for side in (False, True):
            part = [(p[2], p[3]) for p in points if (p[2] >= kink) == side and not p[0].rescaled]
            _least_squares(axes, part)
        caption += (
            f" Dotted: least-squares lines of the networks below and above log {gathered.classes} = {kink:.2f}, the "
            "loss of a network that guesses."
        )
    axes.set(xlabel="RLoss (test)", ylabel=f"{error} in % (test)")
    axes.margins(0.08)
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    return Drawing(name, heading, caption, figure)
