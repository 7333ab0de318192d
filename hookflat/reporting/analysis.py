"""What the measured networks say about flatness and robust generalization: correlations of every measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from hookflat.records.quantities import Quantity, is_error_of, of_role, quantity
from hookflat.reporting.gathering import Configuration, Gathered, evidence, evidence_in_words
from hookflat.reporting.ranking import Ranked, controls, rank
from hookflat.reporting.runs import Network, distinct
from hookflat.reporting.statistics import (
    RESAMPLES,
    Correlation,
    Estimate,
    Sample,
    best_predictor,
    centred,
    correlation,
    difference,
    partial_spearman,
)
from hookflat.reporting.table import THEIR_NORM, published

WITHIN = 4
"""Networks of a method, from which on its own correlation is reported."""


@dataclass(frozen=True)
class Contest:
    """The share of resamples in which each measure has the largest |Spearman|, over `models` networks that have all."""

    shares: dict[str, float]
    models: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """Correlations by (measure, outcome) over last networks; within methods over last and early-stopped ones.

    `early`: over the early-stopped networks alone. `seeds`: between the last networks of each configuration, as
    differences from its mean. `evidence`: what is counted, "configurations" or of checkpoints "methods".

    `claim`: the measure that the paper's claim is about, `loss`: of which loss. `names`: of the measures, in words.
    `outcomes`: key to heading; `percent`: those that are shares. `within`: by (method, measure, outcome); method "" is
    all, centred by method. `best`: by outcome. `paper`: by outcome, of the published Table 1; `against`: the Spearman
    here minus the one there. `ranking`: which measure predicts. Partial correlations hold the clean error fixed, those
    of `beyond_fit` (Spearman of the paper's measures) the RLoss on training images.
    """

    claim: str
    loss: str
    measures: list[str]
    names: dict[str, str]
    outcomes: dict[str, str]
    percent: frozenset[str]
    evidence: str
    overall: dict[tuple[str, str], Correlation]
    early: dict[tuple[str, str], Correlation]
    within: dict[tuple[str, str, str], Correlation]
    seeds: dict[tuple[str, str], Correlation]
    best: dict[str, Contest]
    paper: dict[str, Correlation]
    against: dict[str, Estimate]
    ranking: list[Ranked]
    beyond_fit: dict[tuple[str, str], Estimate]


def analyse(gathered: Gathered, resamples: int = RESAMPLES) -> Analysis:
    """All correlations that the runs allow."""
    error, loss, clean = gathered.playing("RErr"), gathered.playing("RLoss"), gathered.playing("clean error")
    models = [c for c in gathered.configurations if not c.rescaled]
    number = {id(run): i for c, i in zip(models, evidence(models), strict=True) for run in c.runs}
    runs = [run for c in models for run in c.runs]
    last = [(run.networks["last"], number[id(run)]) for run in runs if "last" in run.networks]
    stopped = [(network, number[id(run)]) for run, _, network in distinct(runs, ["best"])]
    measures = flatness_measures((network for network, _ in last), gathered.quantities)
    papers = [measure for measure in _papers_measures(gathered.quantities) if measure in measures]
    outcomes = {loss: "RLoss", error: "RErr", f"{loss} gap": "gap of RLoss", f"{error} gap": "gap of RErr"}
    outcomes = {k: v for k, v in outcomes.items() if sum(not math.isnan(n.value(k)) for n, _ in last) > 2}
    overall, within, seeds = _correlations(last, measures, outcomes, clean, resamples), {}, {}
    for measure in measures:
        for key in outcomes:
            within |= _within(models, measure, key, clean, resamples)
            if pooled := _pooled(_by_seed(models, measure, key, clean), resamples):
                seeds[measure, key] = pooled
    claim = gathered.playing("average flatness")
    theirs = _of_the_paper(error) if gathered.norm == THEIR_NORM else {}
    against = {}
    for key in theirs:
        if (claim, key) in overall:
            x, y, _, clusters = zip(*_points(last, claim, key, clean), strict=True)
            against[key] = difference(Sample(x, y, clusters), theirs[key], resamples=resamples)
    fit = f"{loss} train"
    beyond = {(m, k): _beyond_fit(last, m, k, fit, resamples) for m in papers for k in outcomes}
    return Analysis(
        claim=claim,
        loss=loss,
        measures=measures,
        names={measure: gathered.name(measure) for measure in measures},
        outcomes=outcomes,
        percent=frozenset(k for k in outcomes if quantity(k.split()[0], gathered.quantities).unit == "share"),
        evidence=evidence_in_words(models),
        overall=overall,
        early=_correlations(stopped, measures, outcomes, clean, resamples),
        within=within,
        seeds=seeds,
        best={key: contest for key in outcomes if (contest := _contest(last, measures, key, resamples))},
        paper={k: correlation(s.x, s.y, clusters=s.clusters, resamples=resamples) for k, s in theirs.items()},
        against=against,
        ranking=rank(
            models,
            measures,
            outcomes,
            fixed=controls(gathered, clean),
            confidences=of_role("confidence", gathered.quantities),
            fit=fit,
            resamples=resamples,
        ),
        beyond_fit={key: gain for key, gain in beyond.items() if gain},
    )


def _papers_measures(quantities: Mapping[str, Quantity]) -> list[str]:
    return [*of_role("average flatness", quantities), *of_role("worst flatness", quantities)]


def flatness_measures(networks: Iterable[Network], quantities: Mapping[str, Quantity]) -> list[str]:
    """The numbers on test examples that may predict robustness, flatness above all; the paper's first."""
    keys = [k for k in dict.fromkeys(k for n in networks for k in n.test) if not is_error_of(k)]
    kept = [k for k in keys if quantity(k, quantities).predictor]
    first = _papers_measures(quantities)
    return sorted(kept, key=lambda k: first.index(k) if k in first else len(first))


_Point = tuple[float, float, float, int]
"""Measure, outcome, clean error, cluster."""


def _points(networks: Iterable[tuple[Network, int]], measure: str, key: str, clean: str) -> list[_Point]:
    points = [
        (network.test.get(measure, math.nan), network.value(key), network.test.get(clean, math.nan), cluster)
        for network, cluster in networks
    ]
    return [p for p in points if not math.isnan(p[0] + p[1])]


def _correlations(
    networks: Sequence[tuple[Network, int]],
    measures: Iterable[str],
    outcomes: Iterable[str],
    clean: str,
    resamples: int,
) -> dict[tuple[str, str], Correlation]:
    """By measure and outcome, where there are networks enough."""
    points = {(m, k): _points(networks, m, k, clean) for m, k in product(measures, outcomes)}
    return {pair: _correlation(some, resamples) for pair, some in points.items() if len(some) > 2}


def _by_seed(models: Iterable[Configuration], measure: str, key: str, clean: str) -> list[list[_Point]]:
    """The last networks of each configuration."""
    last = ([(run.networks["last"], 0) for run in c.runs if "last" in run.networks] for c in models)
    return [_points(networks, measure, key, clean) for networks in last]


def _correlation(points: list[_Point], resamples: int) -> Correlation:
    x, y, control, clusters = zip(*points, strict=True)
    return correlation(x, y, clusters=clusters, given=control, resamples=resamples)


def _beyond_fit(
    networks: Iterable[tuple[Network, int]], measure: str, key: str, fit: str, resamples: int
) -> Estimate | None:
    points = [(n.value(measure), n.value(key), n.value(fit), cluster) for n, cluster in networks]
    known = [p for p in points if not any(map(math.isnan, p))]
    if len(known) < 4:
        return None
    x, y, learnt, clusters = zip(*known, strict=True)
    return partial_spearman(x, y, [learnt], clusters=clusters, resamples=resamples)


def _within(
    models: Sequence[Configuration], measure: str, key: str, clean: str, resamples: int
) -> dict[tuple[str, str, str], Correlation]:
    """Of each method with enough networks, last and early stopped; of all that have two, pooled.

    Resampled are a method's configurations, or its seeds where it has one configuration; of all, the methods. The same
    weights count once in a method.
    """
    by_method: dict[str, list[_Point]] = {}
    for method in dict.fromkeys(c.method for c in models):
        same = [c for c in models if c.method == method]
        cluster = {id(run): i if len(same) > 1 else j for i, c in enumerate(same) for j, run in enumerate(c.runs)}
        networks = [(network, cluster[id(run)]) for run, _, network in distinct([run for c in same for run in c.runs])]
        by_method[method] = _points(networks, measure, key, clean)
    enough = {method: points for method, points in by_method.items() if len(points) >= WITHIN}
    correlations = {(method, measure, key): _correlation(points, resamples) for method, points in enough.items()}
    if pooled := _pooled(by_method.values(), resamples):
        correlations["", measure, key] = pooled
    return correlations


def _pooled(groups: Iterable[list[_Point]], resamples: int) -> Correlation | None:
    """Of all networks, as differences from their group's mean; None for less than two groups of two."""
    several = [points for points in groups if len(points) > 1]
    if len(several) < 2:
        return None
    numbers = [i for i, points in enumerate(several) for _ in points]
    x, y = (centred([p[axis] for points in several for p in points], numbers) for axis in (0, 1))
    return correlation(x, y, clusters=numbers, resamples=resamples)


def _contest(last: Sequence[tuple[Network, int]], measures: Sequence[str], key: str, resamples: int) -> Contest | None:
    """Between the measures that nearly all networks have, over those that have them all; None for fewer than two."""
    able = [(network, cluster) for network, cluster in last if not math.isnan(network.value(key))]
    having = {m: sum(m in network.test for network, _ in able) for m in measures}
    entered = [m for m in measures if having[m] >= 0.9 * max(having.values())]
    rows = [(network, cluster) for network, cluster in able if all(m in network.test for m in entered)]
    if len(entered) < 2 or len(rows) < 3:
        return None
    xs = {m: [network.test[m] for network, _ in rows] for m in entered}
    y, clusters = [network.value(key) for network, _ in rows], [cluster for _, cluster in rows]
    return Contest(best_predictor(xs, y, clusters, resamples), len(rows))


def _of_the_paper(error: str) -> dict[str, Sample]:
    """Average-case flatness against RErr and its gap, in the paper's own Table 1."""
    rows = list(published().values())
    flatness = [float(row["flatness"]) for row in rows]
    test = [float(row["rerr_test"]) for row in rows]
    gap = [float(row["rerr_test"]) - float(row["rerr_train"]) for row in rows]
    name = error or "RErr"
    return {key: Sample(flatness, y, range(len(rows))) for key, y in ((name, test), (f"{name} gap", gap))}
