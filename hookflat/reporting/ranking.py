"""Which measure predicts? Every measure against every outcome, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hookflat.reporting.gathering import Configuration, Gathered, evidence
from hookflat.reporting.prediction import (
    Granulated,
    Prediction,
    behind,
    different_rankings,
    granulated,
    out_of_sample,
    single_changes,
)
from hookflat.reporting.runs import MeasuredRun, Network, distinct
from hookflat.reporting.settings import options_of, without_alike_stopping
from hookflat.reporting.statistics import Estimate, partial_spearman, spearman

Control = Callable[[MeasuredRun, Network], float]


@dataclass(frozen=True)
class Ranked:
    """A measure and an outcome, over the `models` last networks that have the outcome and every measure ranked.

    `fixed`: what the partial Spearman holds fixed, in words. `granulated`: over early-stopped ones too. `behind`: R^2
    out of sample minus the best measure's. `fit`: what the RLoss on training images alone predicts; `beyond`: R^2 of
    this measure minus that of the fit. None for what these networks do not tell. `rankings`: how many different ones
    all measures ranked make of these networks.
    """

    measure: str
    outcome: str
    models: int
    spearman: Estimate
    partial: Estimate | None
    fixed: tuple[str, ...]
    granulated: Granulated | None
    prediction: Prediction | None
    rankings: int
    fit: Prediction | None
    behind: Estimate | None = None
    beyond: Estimate | None = None


def controls(gathered: Gathered, clean: str) -> dict[str, Control]:
    """What a partial correlation holds fixed: clean error, confidence, learning rate.

    Those that vary here, and not in one configuration alone.
    """
    confidence = gathered.playing("confidence")
    candidates: dict[str, Control] = {
        "clean error": lambda _, network: network.value(clean),
        "confidence": lambda _, network: network.value(confidence),
        "learning rate": lambda run, _: _learning_rate(run),
    }
    return {name: of for name, of in candidates.items() if _varies(gathered.configurations, of)}


def _varies(configurations: Iterable[Configuration], of: Control) -> bool:
    values = [{of(run, run.networks["last"]) for run in c.runs if "last" in run.networks} for c in configurations]
    known = [there for each in values if (there := {v for v in each if not math.isnan(v)})]
    usual = max((v for each in known for v in each), key=lambda v: sum(v in each for each in known), default=math.nan)
    return sum(each != {usual} for each in known) > 1


_Row = tuple[MeasuredRun, Network, str, int]
"""A network, its method, and the number of its configuration."""


def rank(
    models: Sequence[Configuration],
    measures: Sequence[str],
    outcomes: Iterable[str],
    *,
    fixed: Mapping[str, Control],
    confidences: Sequence[str] = (),
    fit: str = "",
    resamples: int,
) -> list[Ranked]:
    """By outcome, those that beat the baseline out of sample first, then by R^2; those without a prediction last.

    All over the same networks: those that have every measure that half of the methods share with the others. A measure
    that fewer share is not ranked. `confidences`: the measures that are a confidence, for which none is held fixed.
    `fit`: how well training images are fitted, as `Network.value` takes it; only where these networks all have it.
    """
    last = [
        (run, run.networks["last"], configuration.method, i)
        for configuration, i in zip(models, evidence(models), strict=True)
        for run in configuration.runs
        if "last" in run.networks
    ]
    measures = _shared(last, measures)
    trained = [
        row for row in distinct([run for c in models for run in c.runs if run.trained_here]) if _has(row[2], measures)
    ]
    tables = without_alike_stopping([options_of(run.recipe) for run, _, _ in trained])
    changes = single_changes(
        [
            table | {"run.seed": run.seed, "early stopping": label == "best"}
            for table, (run, label, _) in zip(tables, trained, strict=True)
        ]
    )
    ranking = []
    for outcome in outcomes:
        rows = [row for row in last if _has(row[1], [*measures, outcome])]
        y, methods, clusters = [r[1].value(outcome) for r in rows], [r[2] for r in rows], [r[3] for r in rows]
        rankings = different_rankings([[r[1].value(measure) for r in rows] for measure in measures])
        fits = [r[1].value(fit) for r in rows]
        known = None if any(map(math.isnan, fits)) else out_of_sample(fits, y, methods, resamples=resamples)
        ranked = []
        for measure in measures if rows else ():
            x = [r[1].value(measure) for r in rows]
            pairs = granulated(changes, *([n.value(key) for *_, n in trained] for key in (measure, outcome)))
            prediction = out_of_sample(x, y, methods, tried=rankings, resamples=resamples)
            held = {n: of for n, of in fixed.items() if n != "confidence" or measure not in confidences}
            partial, names = _partial(rows, measure, outcome, held, resamples)
            whole = spearman(x, y, clusters=clusters, resamples=resamples)
            ranked.append(
                Ranked(measure, outcome, len(rows), whole, partial, names, pairs, prediction, rankings, known)
            )
        ranked.sort(key=_place)
        ranking += [_placed(r, ranked[0], resamples) for r in ranked]
    return ranking


def _shared(rows: Sequence[_Row], measures: Sequence[str]) -> list[str]:
    """The measures to rank: as many as leave half of the methods with networks that have them all."""
    having = {m: {i for i, row in enumerate(rows) if _has(row[1], [m])} for m in measures}
    methods = lambda of: len({rows[i][2] for i in of})
    least = max(map(methods, having.values()), default=0) / 2
    common, shared = set(range(len(rows))), set()
    for measure in sorted(measures, key=lambda m: -len(having[m])):
        if methods(common & having[measure]) >= least:
            common &= having[measure]
            shared.add(measure)
    return [measure for measure in measures if measure in shared]


def _has(network: Network, keys: Sequence[str]) -> bool:
    return not any(math.isnan(network.value(key)) for key in keys)


def _place(ranked: Ranked) -> tuple[bool, float]:
    prediction = ranked.prediction
    return (not prediction.beats_the_baseline, -prediction.r2.value) if prediction else (True, math.inf)


def _placed(ranked: Ranked, best: Ranked, resamples: int) -> Ranked:
    prediction = ranked.prediction
    if prediction is None:
        return ranked
    first = None if ranked is best else best.prediction
    less = behind(prediction, first, resamples=resamples) if first else None
    more = behind(prediction, ranked.fit, tried=ranked.rankings, resamples=resamples) if ranked.fit else None
    return replace(ranked, behind=less, beyond=more)


def _partial(
    rows: Sequence[_Row],
    measure: str,
    outcome: str,
    fixed: Mapping[str, Control],
    resamples: int,
) -> tuple[Estimate | None, tuple[str, ...]]:
    """Over the networks in which all that is held fixed is known; None for too few of them."""
    given = [[of(run, network) for of in fixed.values()] for run, network, *_ in rows]
    known = [i for i, values in enumerate(given) if not any(map(math.isnan, values))]
    if not fixed or len(known) < len(fixed) + 3:
        return None, ()
    x, y = ([rows[i][1].value(key) for i in known] for key in (measure, outcome))
    of = [rows[i][3] for i in known]
    held = list(zip(*(given[i] for i in known), strict=True))
    return partial_spearman(x, y, held, clusters=of, resamples=resamples), tuple(fixed)


def _learning_rate(run: MeasuredRun) -> float:
    options = options_of(run.recipe)
    rate = options.get("schedule.peak", options.get("optimizer.lr"))  # a cycle trains at its own
    return float(rate) if isinstance(rate, int | float) and run.trained_here else math.nan
