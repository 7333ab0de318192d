"""The paper's figures from measured runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from hookflat.functional.canvas import new_figure, tidy
from hookflat.reporting.gathering import Configuration, Gathered
from hookflat.reporting.labels import label
from hookflat.reporting.phrases import counted
from hookflat.reporting.runs import MeasuredRun, distinct
from hookflat.reporting.settings import plain
from hookflat.reporting.statistics import line
from hookflat.reporting.style import PAGE, TREND, Drawing
from hookflat.reporting.table import Row, Table1, representatives, short_title, title
from hookflat.reporting.through_training import mean_overfitting, through_training

COLOURS = {"good": "#1a9e88", "average": "#b8860b", "poor": "#d1495b", "": "#7d8794"}
MARKERS = {"good": "o", "average": "s", "poor": "D", "": "p"}
CYCLE = ("#3b82c4", "#d1495b", "#1a9e88", "#b8860b", "#8e6bbf", "#5f9e2e", "#c2689b", "#6b7785", "#2a9fb0", "#b5651d")
FEW = 20
"""Configurations that are all coloured and labelled; of more, one of each method is."""
NAMED = 40
"""How many labels a figure has at the most, to be read."""


def drawings(gathered: Gathered, table: Table1) -> list[Drawing]:
    """Every figure, in the paper's order."""
    average, worst, loss = (table.numbers[role] for role in ("average flatness", "worst flatness", "RLoss"))
    mean = gathered.name(average) if average else "average-case flatness"
    most = gathered.name(worst) if worst else "worst-case flatness"
    return [
        _scatter(table, "fig1", average, loss, "Fig. 1: RLoss against average-case flatness", mean),
        _scatter(table, "fig1_worst", worst, loss, "RLoss against worst-case flatness", most),
        _scatter(table, "fig1_gap", average, f"{loss} gap", "Generalization gap against average-case flatness", mean),
        mean_overfitting(table, gathered.norm),
        _landscapes(gathered, table.numbers["RErr"]),
        through_training(table, gathered.norm),
        _trends(table),
        _kink(gathered, table, f"RErr ({table.attack})"),
    ]


def _scatter(table: Table1, name: str, x: str, y: str, heading: str, flatness: str) -> Drawing:
    """A point for every run, a larger one for the mean of a configuration, labelled by method."""
    rows = [(row, points) for row in table.rows if (points := _points(row.configuration, x, y))]
    vertical = "gap of RLoss (test minus train)" if y.endswith(" gap") else "RLoss (test)"
    if not rows:
        return Drawing(name, heading, f"No run has both {flatness} and {vertical}.", None)
    figure = new_figure(7.2, 5.0)
    axes = figure.subplots()
    everything = [row for row, _ in rows]
    chosen = everything if len(rows) <= FEW else representatives(everything)
    labelled = chosen if len(chosen) <= NAMED else [*chosen[: NAMED // 2], *chosen[-NAMED // 2 :]]
    single = [(p[1], p[2]) for _, points in rows for p in points]
    models = [(p[1], p[2]) for row, points in rows for p in points if not row.configuration.rescaled]
    named: list[tuple[float, float]] = []
    for row, points in rows:
        shown = row in chosen
        mean = (fmean(p[1] for p in points), fmean(p[2] for p in points))
        runs, xs, ys = zip(*points, strict=True)
        marker = "^" if runs[0].early_stopped else MARKERS[row.group] if _known(runs[0]) else "v"
        colour = COLOURS[row.group] if shown else "0.5"
        small = len(points) > 1 or not shown
        dots = axes.scatter(xs, ys, s=12 if small else 42, c=colour, marker=marker, alpha=0.7 if small else 1, lw=0)
        dots.set_urls([f"#{run.anchor}" for run in runs])
        if len(points) > 1 and shown:
            big = axes.scatter(*mean, s=46, c=colour, marker=marker, edgecolor=PAGE, lw=0.8, zorder=3)
            big.set_urls([f"#{row.configuration.anchor}"])
        if row in labelled:
            named.append(mean)
    fit = _least_squares(axes, models)
    axes.set(xlabel=f"{flatness} in RLoss (lower is flatter)", ylabel=vertical)
    axes.margins(0.12)
    tidy(axes)
    _name_groups(axes, {row.group for row in chosen})
    axes.legend(frameon=False, title="robustness", fontsize=8, title_fontsize=8, loc="best")
    texts = [short_title(row, chosen) for row, _ in rows if row in labelled]
    seeds = any(len(points) > 1 for _, points in rows)
    label(figure, axes, named, texts, single, halo=PAGE, fits=[fit] if fit else [])
    caption = (
        "Each small point is a run, each large one the mean of its seeds" if seeds else "Each point is a run"
    ) + "; colour and shape are the groups of Table 1. The dotted line is a least-squares fit through the runs."
    if len(labelled) < len(chosen):
        caption += f" Labelled: the {NAMED // 2} methods of least test RErr and the {NAMED // 2} of largest."
    if len(models) < len(single):
        caption += " Pentagons: rescaled networks, which the line leaves out."
    if len(chosen) < len(rows):
        caption += " Grey: other hyper-parameters of a method; the one of least test RErr is labelled."
    runs = [run for row, _ in rows for run in row.configuration.runs]
    if any(run.early_stopped for run in runs):
        caption += " Triangles: early-stopped networks."
    if not all(_known(run) or run.early_stopped for run in runs):
        caption += " Triangles that point down: networks trained elsewhere."
    return Drawing(name, heading, caption, figure)


def _known(run: MeasuredRun) -> bool:
    """Whether it was trained here, or a study says what it is."""
    return run.trained_here or run.label is not None


def _name_groups(axes: Any, present: set[str]) -> None:
    """Entries of the legend."""
    for group in ("good", "average", "poor"):
        if group in present:
            axes.scatter([], [], c=COLOURS[group], marker=MARKERS[group], s=30, label=group)


def _points(
    configuration: Configuration, x: str, y: str, label: str = "last"
) -> list[tuple[MeasuredRun, float, float]]:
    networks = [(run, run.networks[label]) for run in configuration.runs if label in run.networks]
    points = [(run, network.value(x), network.value(y)) for run, network in networks]
    return [p for p in points if math.isfinite(p[1] + p[2])]


def _least_squares(
    axes: Any, points: Sequence[tuple[float, float]], colour: Any = TREND
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Draw the line through points; its ends, None where there is none."""
    x, y = [p[0] for p in points], [p[1] for p in points]
    if len(x) < 3 or (fit := line(x, y)) is None:
        return None
    first, last = ((e, fit[0] * e + fit[1]) for e in (min(x), max(x)))
    axes.plot(*zip(first, last, strict=True), color=colour, ls=":", lw=1.6, zorder=1.2)
    return first, last


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
        f"Mean over {counted(lines[0].directions, 'direction')}. "
        "Adversarial examples are made anew at every point of every direction; weights are perturbed layer by layer, "
        "relative to their norm. RErr in brackets is that of Table 1, or else of the landscape's own attack at t = 0. "
        "Dashed: functionally equal networks of another scale."
    )
    return Drawing(name, heading, caption, figure)


def _trends(table: Table1) -> Drawing:
    """Methods with several hyper-parameters: a shade for each value, and a line."""
    name, heading = "fig6", "Fig. 6: trends over hyper-parameters"
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.configuration.rescaled or row.configuration.checkpoint:
            continue
        if row.configuration.setting and _points(
            row.configuration, table.numbers["average flatness"], table.numbers["RLoss"]
        ):
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
            points = _points(row.configuration, table.numbers["average flatness"], table.numbers["RLoss"])
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
    ends = [(k.split(".")[-1], a, b) for (k, a), (_, b) in zip(first, last, strict=True) if a != b]
    spans = [f"{name} {plain(a)} to {plain(b)}" for name, a, b in ends if None not in (a, b)]
    return ", ".join([rows[0].title.split(", ")[0], *spans])


def _kink(gathered: Gathered, table: Table1, error: str) -> Drawing:
    """RErr against RLoss of all networks, with a line on each side of log K."""
    name, heading = "fig7", f"Fig. 7: {error} against RLoss"
    points = [
        (run, label_, n.test[table.numbers["RLoss"]], 100 * n.test[table.numbers["RErr"]])
        for run, label_, n in distinct(gathered.runs)
        if {table.numbers["RLoss"], table.numbers["RErr"]} <= n.test.keys()
    ]
    if not points:
        return Drawing(name, heading, f"No run has both RLoss and {error}.", None)
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    group = {id(run): row.group for row in table.rows for run in row.configuration.runs}
    _name_groups(axes, {group[id(p[0])] for p in points})
    for kind, text in (("last", "filled: last"), ("", "open: early stopped")):
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
        if len({p[1] == "last" for p in points}) == 2:
            axes.scatter([], [], s=24, edgecolor="0.5", facecolor="0.5" if kind else "none", label=text)
    caption = (
        "All networks, the last and the early-stopped ones, the same weights once; colour and shape are the groups of "
        "Table 1."
    )
    if gathered.classes:
        kink = math.log(gathered.classes)
        axes.axvline(kink, color="0.5", lw=0.9, ls="--", label=f"log {gathered.classes}: guessing")
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
