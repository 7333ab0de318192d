"""What the measured networks say about flatness and robust generalization: correlations of every measure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hookflat.reporting.gathering import Gathered
from hookflat.reporting.runs import Network, Run
from hookflat.reporting.statistics import RESAMPLES, Correlation, best_predictor, centred, correlation
from hookflat.reporting.table import published

CLAIM = "average_flatness"
"""The measure that the paper's claim is about."""

WITHIN = 4
"""Networks of a method, from which on its own correlation is reported."""

_NAMES = {
    "average_flatness": "average-case flatness",
    "worst_flatness": "worst-case flatness",
    "clean_average_flatness": "average-case flatness of the clean loss",
    "clean_worst_flatness": "worst-case flatness of the clean loss",
}
_ROBUSTNESS = ("rloss", "rerr_", "clean_error", "clean_loss", "broken_by_")
"""Beginnings of measures that are what flatness should predict, or part of it; all others are taken for flatness."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Correlations by (measure, outcome) over last networks; within methods over last and early-stopped ones.

    `outcomes`: key to heading. `within`: by (method, measure, outcome); method "" is all, centred by method. `best`:
    by outcome, the share of resamples in which each measure has the largest |Spearman|. `paper`: by outcome, of the
    published Table 1. Partial correlations hold the clean error fixed.
    """

    measures: list[str]
    outcomes: dict[str, str]
    overall: dict[tuple[str, str], Correlation]
    within: dict[tuple[str, str, str], Correlation]
    best: dict[str, dict[str, float]]
    paper: dict[str, Correlation]


def name_of(measure: str) -> str:
    """A measure in words."""
    return _NAMES.get(measure, measure.replace("_", " "))


def analyse(gathered: Gathered, error: str, resamples: int = RESAMPLES) -> Analysis:
    """All correlations that the runs allow. `error`: the measure of RErr."""
    runs = [run for run in gathered.runs if "last" in run.networks and not run.rescaled]
    numbers = {id(run): i for i, c in enumerate(gathered.configurations) for run in c.runs}
    clusters = [numbers[id(run)] for run in runs]
    last = [run.networks["last"] for run in runs]
    measures = flatness_measures(last)
    outcomes = {"rloss": "RLoss", error: "RErr", "rloss gap": "gap of RLoss", f"{error} gap": "gap of RErr"}
    outcomes = {k: v for k, v in outcomes.items() if sum(not math.isnan(outcome(n, k)) for n in last) > 2}
    overall = {}
    for measure in measures:
        for key in outcomes:
            points = _points(last, measure, key, clusters)
            if len(points) > 2:
                overall[measure, key] = _correlation(points, resamples)
    within = {}
    for measure in measures:
        for key in outcomes:
            within |= _within(runs, measure, key, resamples)
    best = {key: _best(last, clusters, measures, key, resamples) for key in outcomes}
    return Analysis(measures, outcomes, overall, within, best, _of_the_paper(error, resamples))


def flatness_measures(networks: Sequence[Network]) -> list[str]:
    """The numbers on test examples that say how flat a network is: all but the robust and the clean loss and errors."""
    found = dict.fromkeys(k for n in networks for k in n.test)
    kept = [k for k in found if not k.startswith(_ROBUSTNESS) and not k.endswith("_stderr")]
    return sorted(kept, key=lambda k: list(_NAMES).index(k) if k in _NAMES else len(_NAMES))


def outcome(network: Network, key: str) -> float:
    """A number that flatness should predict, NaN where the network has none: "rloss", "rloss gap"."""
    name, _, gap = key.partition(" ")
    return (network.gap if gap else network.test).get(name, math.nan)


_Point = tuple[float, float, float, int]
"""Measure, outcome, clean error, cluster."""


def _points(networks: Sequence[Network], measure: str, key: str, clusters: Sequence[int]) -> list[_Point]:
    points = [
        (network.test.get(measure, math.nan), outcome(network, key), network.test.get("clean_error", math.nan), cluster)
        for network, cluster in zip(networks, clusters, strict=True)
    ]
    return [p for p in points if not math.isnan(p[0] + p[1])]


def _correlation(points: list[_Point], resamples: int) -> Correlation:
    x, y, control, clusters = zip(*points, strict=True)
    known = not any(map(math.isnan, control))
    return correlation(x, y, clusters=clusters, given=control if known else None, resamples=resamples)


def _within(runs: Sequence[Run], measure: str, key: str, resamples: int) -> dict[tuple[str, str, str], Correlation]:
    """Of each method with enough networks, last and early stopped; of all, as differences from their method's mean."""
    by_method: dict[str, list[_Point]] = defaultdict(list)
    for i, run in enumerate(runs):
        networks = [run.networks[label] for label in ("last", "best") if label in run.networks]
        by_method[run.method] += _points(networks, measure, key, [i] * len(networks))
    enough = {method: points for method, points in by_method.items() if len(points) >= WITHIN}
    found = {(method, measure, key): _correlation(points, resamples) for method, points in enough.items()}
    if len(enough) > 1:
        methods = [i for i, points in enumerate(enough.values()) for _ in points]
        pooled = [p for points in enough.values() for p in points]
        x, y = (centred([p[axis] for p in pooled], methods) for axis in (0, 1))
        found["", measure, key] = correlation(x, y, clusters=methods, resamples=resamples)
    return found


def _best(
    networks: Sequence[Network], clusters: Sequence[int], measures: Sequence[str], key: str, resamples: int
) -> dict[str, float]:
    """Of the networks that have all measures; empty for fewer than two measures or three networks."""
    rows = [
        (outcome(network, key), [network.test[m] for m in measures], cluster)
        for network, cluster in zip(networks, clusters, strict=True)
        if not math.isnan(outcome(network, key)) and all(m in network.test for m in measures)
    ]
    if len(measures) < 2 or len(rows) < 3:
        return {}
    y, xs, kept = zip(*rows, strict=True)
    return best_predictor(dict(zip(measures, zip(*xs, strict=True), strict=True)), y, kept, resamples)


def _of_the_paper(error: str, resamples: int) -> dict[str, Correlation]:
    """Average-case flatness against RErr and its gap, in the paper's own Table 1."""
    rows = list(published().values())
    flatness = [float(row["flatness"]) for row in rows]
    test = [float(row["rerr_test"]) for row in rows]
    gap = [float(row["rerr_test"]) - float(row["rerr_train"]) for row in rows]
    return {
        error: correlation(flatness, test, resamples=resamples),
        f"{error} gap": correlation(flatness, gap, resamples=resamples),
    }
