"""Does the claim hold here? Sentences made from the numbers; they say no when the numbers do."""

from __future__ import annotations

import math

from hookflat.reporting.analysis import CLAIM, Analysis, name_of
from hookflat.reporting.gathering import Gathered
from hookflat.reporting.statistics import Correlation, Estimate
from hookflat.reporting.table import ERRORS

FEW = 6
"""Configurations, below which nothing is concluded."""


def verdict(analysis: Analysis, gathered: Gathered) -> list[str]:
    """Paragraphs: the claim, each outcome, within methods, the control, the best measure, and the paper's numbers."""
    if CLAIM not in analysis.measures:
        return ["Average-case flatness was not measured: these runs say nothing about the claim."]
    said = [_claim(analysis)]
    if any(key[0] == CLAIM for key in analysis.overall) and "cannot" not in said[0]:
        said += [_outcomes(analysis), _partial(analysis), _within(analysis), _best(analysis), _paper(analysis)]
    rescaled = [run.name for run in gathered.runs if run.rescaled]
    if rescaled:
        said.append(f"Rescaled networks ({len(rescaled)}) are functionally equal to others and not counted as models.")
    return [text for text in said if text]


def _claim(analysis: Analysis) -> str:
    found = analysis.overall.get((CLAIM, "rloss"))
    if found is None:
        return "RLoss and average-case flatness were measured on too few networks: the claim cannot be judged."
    of = _models(found)
    if found.clusters < FEW:
        return (
            f"The claim cannot be judged from {of}: at least {FEW} configurations are needed. "
            f"What there is: {_coefficients(found)}."
        )
    sign, spearman = found.spearman.sign, found.spearman
    if sign > 0:
        text = "The claim holds here: networks in flatter places have the lower robust loss"
        return f"{text}. {_strength(spearman)} over {of}: {_coefficients(found)}."
    if sign < 0:
        text = "The claim does not hold here, its contrary does: networks in flatter places have the higher robust loss"
        return f"{text}. {_strength(spearman)} over {of}: {_coefficients(found)}."
    return (
        "The claim is not supported here: no correlation of average-case flatness with RLoss can be told from none. "
        f"Over {of}: {_coefficients(found)}; the interval of Spearman's includes zero."
    )


def _outcomes(analysis: Analysis) -> str:
    """What flatness says about the error and the gaps."""
    parts = []
    for key, heading in analysis.outcomes.items():
        found = analysis.overall.get((CLAIM, key))
        if key == "rloss" or found is None:
            continue
        goes = {
            1: f"the {heading} is lower where the loss is flatter",
            -1: f"the {heading} is higher where the loss is flatter",
            0: f"for the {heading} there is no correlation that could be told from none",
        }[found.spearman.sign]
        parts.append(f"{goes} (Spearman {estimate(found.spearman)})")
    return _sentence("; ".join(parts))


def _partial(analysis: Analysis) -> str:
    found = analysis.overall[CLAIM, "rloss"].partial_spearman
    if found is None or math.isnan(found.value):
        return ""
    stays = {1: "stays", -1: "turns round", 0: "cannot be told from none any more"}[found.sign]
    if analysis.overall[CLAIM, "rloss"].spearman.sign == 0:
        stays = {1: "appears", -1: "is the contrary", 0: "cannot be told from none either"}[found.sign]
    return f"With the clean error held fixed, the correlation with RLoss {stays} (Spearman {estimate(found)})."


def _within(analysis: Analysis) -> str:
    """Of single methods, whose networks differ in seed, hyper-parameters and early stopping."""
    each = {k[0]: c for k, c in analysis.within.items() if k[0] and k[1:] == (CLAIM, "rloss")}
    pooled = analysis.within.get(("", CLAIM, "rloss"))
    if not each:
        return "No method has enough networks of its own to look within methods."
    positive = sum(c.spearman.value > 0 for c in each.values())
    clear = sum(c.spearman.sign > 0 for c in each.values())
    text = (
        f"Within methods (last and early-stopped networks of all seeds and hyper-parameters), flatness and RLoss go "
        f"together in {positive} of {len(each)}, and clearly so in {clear}"
    )
    if pooled is None:
        return f"{text}."
    return f"{text}; as differences from each method's mean, Spearman {estimate(pooled.spearman)}."


def _best(analysis: Analysis) -> str:
    parts = []
    for key, heading in analysis.outcomes.items():
        shares = {m: s for m, s in analysis.best.get(key, {}).items() if not math.isnan(s)}
        if shares:
            first = max(analysis.best[key], key=lambda m: abs(analysis.overall[m, key].spearman.value))
            found = analysis.overall[first, key].spearman
            strongest = f"the strongest in {shares[first]:.0%} of resamples"
            parts.append(f"{heading}: {name_of(first)} (Spearman {estimate(found)}, {strongest})")
    if not parts:
        return ""
    return f"Of {len(analysis.measures)} measures, the one that goes best with each outcome: {'; '.join(parts)}."


def _paper(analysis: Analysis) -> str:
    """The published Table 1 against the same correlation here."""
    parts = []
    for key, theirs in analysis.paper.items():
        ours = analysis.overall.get((CLAIM, key))
        if ours is None:
            continue
        judged = _agreement(ours.spearman, theirs.spearman)
        parts.append(
            f"for the {analysis.outcomes[key]} Spearman {estimate(theirs.spearman)} in the paper and "
            f"{estimate(ours.spearman)} here: {judged}"
        )
    if not parts:
        return ""
    return f"Against the {next(iter(analysis.paper.values())).models} rows of the paper's Table 1: {'; '.join(parts)}."


def _agreement(ours: Estimate, theirs: Estimate) -> str:
    if ours.sign != theirs.sign:
        contrary = ours.sign and theirs.sign
        return (
            "it disagrees"
            if contrary or _apart(ours, theirs)
            else "that does not contradict, but is too little to agree"
        )
    if ours.sign == 0:
        return "neither can be told from none"
    if _apart(ours, theirs):
        return f"it agrees in sign, and is {'stronger' if abs(ours.value) > abs(theirs.value) else 'weaker'} here"
    return "it agrees"


def _apart(a: Estimate, b: Estimate) -> bool:
    """Whether the intervals have nothing in common."""
    return a.high < b.low or b.high < a.low


def _strength(found: Estimate) -> str:
    size = abs(found.value)
    words = ((0.8, "A very strong"), (0.6, "A strong"), (0.4, "A moderate"), (0.2, "A weak"))
    return next((word for least, word in words if size >= least), "A very weak") + " correlation"


def _coefficients(found: Correlation) -> str:
    return (
        f"Pearson {estimate(found.pearson)}, Spearman {estimate(found.spearman)}, "
        f"Kendall {estimate(found.kendall)} (95 % intervals)"
    )


def _models(found: Correlation) -> str:
    if found.models == found.clusters:
        return f"{found.models} networks"
    return f"{found.models} networks of {found.clusters} configurations"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def estimate(found: Estimate) -> str:
    """ "0.81 [0.62, 0.93]"."""
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−")


def protocol_lines(gathered: Gathered, error: str) -> list[str]:
    """How it was measured, a line for each stage."""
    protocol = gathered.protocol
    lines = [f"eps {protocol['eps']:.4g}, PGD step size {protocol['step_size']:.4g}; RErr by {ERRORS[error]}"]
    for name, stage in protocol["stages"].items():
        examples = ", ".join(f"{n} {split}" for split, n in stage["examples"].items())
        measures = "; ".join(
            f"{measure}" + (f" ({options})" if (options := _options(table)) else "")
            for measure, table in stage["measures"].items()
        )
        lines.append(f"{name}: {examples} examples: {measures}")
    return lines


def _options(table: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items() if value is not None and value is not False)
