"""Which measure predicts? Every measure against every outcome, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hookflat.recipe.recipe import RunOptions
from hookflat.reporting.gathering import Configuration, Gathered, evidence, options_of
from hookflat.reporting.prediction import Granulated, Prediction, granulated, out_of_sample, single_changes
from hookflat.reporting.runs import MeasuredRun, Network, distinct
from hookflat.reporting.statistics import Estimate, partial_spearman

Control = Callable[[MeasuredRun, Network], float]


@dataclass(frozen=True)
class Ranked:
    """A measure and an outcome. Over last networks, `granulated` over early-stopped ones too.

    `fixed`: what the partial Spearman holds fixed, in words. None for what these networks do not tell.
    """

    measure: str
    outcome: str
    partial: Estimate | None
    fixed: tuple[str, ...]
    granulated: Granulated | None
    prediction: Prediction | None


def controls(gathered: Gathered, clean: str) -> dict[str, Control]:
    """What a partial correlation holds fixed: clean error, confidence, learning rate; those that vary here."""
    networks = [(run, run.networks["last"]) for run in gathered.runs if "last" in run.networks]
    confidence = gathered.playing("confidence")
    found: dict[str, Control] = {
        "clean error": lambda _, network: network.value(clean),
        "confidence": lambda _, network: network.value(confidence),
        "learning rate": lambda run, _: _learning_rate(run),
    }
    values = {name: {of(run, n) for run, n in networks} for name, of in found.items()}
    return {name: of for name, of in found.items() if len({v for v in values[name] if not math.isnan(v)}) > 1}


def trained_with(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe; those of `[run]` that are younger than it have their defaults, which change nothing."""
    run = recipe.get("run")
    return options_of(recipe | {"run": vars(RunOptions()) | run} if run else recipe)


def rank(
    models: Sequence[Configuration],
    measures: Sequence[str],
    outcomes: Iterable[str],
    *,
    fixed: Mapping[str, Control],
    confidences: Sequence[str] = (),
    resamples: int,
) -> list[Ranked]:
    """By outcome, the measure of the largest R^2 out of sample first, those without one last.

    `confidences`: the measures that are a confidence, for which none is held fixed.
    """
    last = [
        (run, run.networks["last"], configuration.method, i)
        for configuration, i in zip(models, evidence(models), strict=True)
        for run in configuration.runs
        if "last" in run.networks
    ]
    trained = distinct([run for c in models for run in c.runs if run.trained_here])
    changes = single_changes(
        [trained_with(r.recipe) | {"run.seed": r.seed, "early stopping": label == "best"} for r, label, _ in trained]
    )
    found = []
    for outcome in outcomes:
        ranked = []
        for measure in measures:
            rows = [r for r in last if not math.isnan(r[1].value(measure) + r[1].value(outcome))]
            pairs = granulated(changes, *([n.value(key) for *_, n in trained] for key in (measure, outcome)))
            x, y = ([network.value(key) for _, network, *_ in rows] for key in (measure, outcome))
            prediction = out_of_sample(x, y, [r[2] for r in rows], tried=len(measures), resamples=resamples)
            held = {n: of for n, of in fixed.items() if n != "confidence" or measure not in confidences}
            partial, names = _partial(rows, measure, outcome, held, resamples)
            ranked.append(Ranked(measure, outcome, partial, names, pairs, prediction))
        found += sorted(ranked, key=lambda r: -r.prediction.r2.value if r.prediction else math.inf)
    return found


def _partial(
    rows: Sequence[tuple[MeasuredRun, Network, str, int]],
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
    rate = options_of(run.recipe).get("optimizer.lr")
    return float(rate) if isinstance(rate, int | float) and run.trained_here else math.nan
