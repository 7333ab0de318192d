"""Does the claim hold here? Sentences made from the numbers; they say no when the numbers do."""

from __future__ import annotations

import math

from hookflat.reporting.analysis import Analysis
from hookflat.reporting.foretelling import changes, foretold, predictions
from hookflat.reporting.gathering import Gathered
from hookflat.reporting.phrases import counted, estimate, listed, minus, sentence
from hookflat.reporting.statistics import FEW, FEW_MORE, Correlation, Estimate


def verdict(analysis: Analysis, gathered: Gathered) -> list[str]:
    """Three short sentences at the most: the claim, error and gaps, and whether any measure predicts."""
    if analysis.claim not in analysis.measures:
        there = any(analysis.claim in n.test for run in gathered.runs for n in run.networks.values())
        of = "measured of no last network that is not rescaled" if there else "not measured"
        return [f"Average-case flatness was {of}: these runs say nothing about the claim."]
    said = [_claim(analysis)]
    if _judged(analysis):
        said += [_others(analysis), foretold(analysis)]
    return [text for text in said if text]


def details(analysis: Analysis, gathered: Gathered) -> list[str]:
    """Paragraphs: each coefficient, each outcome, the control, within methods, the best measure, and the paper's."""
    correlation = analysis.overall.get((analysis.claim, analysis.loss))
    said = []
    if correlation and _judged(analysis):
        over = f"over {_models(correlation, analysis)}: {_coefficients(correlation)}"
        what = "of flatness with RLoss"
        told = (
            f"{_strength(correlation.spearman)} {what}"
            if correlation.spearman.sign
            else f"No correlation {what} told from zero"
        )
        said.append(f"{told} {over}.")
        said += [_outcomes(analysis), _partial(analysis), _beyond_fit(analysis), _early(analysis), _within(analysis)]
        said += [_best(analysis), predictions(analysis), changes(analysis), _paper(analysis)]
    elif correlation and correlation.clusters < FEW:
        said.append(f"What there is: {_coefficients(correlation)}.")
    rescaled = [run.name for c in gathered.configurations if c.rescaled for run in c.runs]
    if rescaled:
        said.append(f"Rescaled networks ({len(rescaled)}) are functionally equal to others and not counted as models.")
    return [text for text in said if text]


def _judged(analysis: Analysis) -> bool:
    """Whether the claim can be."""
    correlation = analysis.overall.get((analysis.claim, analysis.loss))
    return correlation is not None and correlation.clusters >= FEW and not math.isnan(correlation.spearman.value)


def _claim(analysis: Analysis) -> str:
    correlation = analysis.overall.get((analysis.claim, analysis.loss))
    if correlation is None:
        return "RLoss and average-case flatness were measured on too few networks: the claim cannot be judged."
    of = _models(correlation, analysis)
    if correlation.clusters < FEW:
        return f"The claim cannot be judged from {of}: at least {FEW} {analysis.evidence} are needed."
    if math.isnan(correlation.spearman.value):
        return f"The claim cannot be judged from {of}: their flatness or their RLoss does not vary."
    text = {
        1: "The claim holds here: networks in flatter places have the lower robust loss",
        -1: "The claim does not hold here, its contrary does: networks in flatter places have the higher robust loss",
        0: "The claim is not supported here: the correlation of flatness with RLoss cannot be told from zero",
    }[correlation.spearman.sign]
    return f"{text} (Spearman {estimate(correlation.spearman)}, {of})."


def _others(analysis: Analysis) -> str:
    """What flatness says about the error and the gaps, in short."""
    by_sign: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for key, heading in analysis.outcomes.items():
        correlation = analysis.overall.get((analysis.claim, key))
        if key != analysis.loss and correlation and not math.isnan(correlation.spearman.low):
            by_sign[correlation.spearman.sign].append(f"{heading} ({minus(f'{correlation.spearman.value:.2f}')})")
    parts = [f"flatter networks have the lower {listed(by_sign[1])}"] if by_sign[1] else []
    parts += [f"{'the' if parts else 'flatter networks have the'} higher {listed(by_sign[-1])}"] if by_sign[-1] else []
    parts += [f"nothing can be told of {listed(by_sign[0])}"] if by_sign[0] else []
    return sentence("; ".join(parts))


def _outcomes(analysis: Analysis) -> str:
    """What flatness says about the error and the gaps."""
    parts = []
    for key, heading in analysis.outcomes.items():
        correlation = analysis.overall.get((analysis.claim, key))
        if key == analysis.loss or correlation is None:
            continue
        if math.isnan(correlation.spearman.low):
            parts.append(f"the {heading} cannot be judged from {_models(correlation, analysis)}")
            continue
        goes = {
            1: f"the {heading} is lower where the loss is flatter",
            -1: f"the {heading} is higher where the loss is flatter",
            0: f"for the {heading} the correlation cannot be told from zero",
        }[correlation.spearman.sign]
        parts.append(f"{goes} (Spearman {estimate(correlation.spearman)})")
    return sentence("; ".join(parts))


def _partial(analysis: Analysis) -> str:
    partial = analysis.overall[analysis.claim, analysis.loss].partial_spearman
    if partial is None or math.isnan(partial.value):
        return ""
    if math.isnan(partial.low):
        told = f"Spearman with RLoss is {estimate(partial)}; an interval takes {FEW + FEW_MORE} {analysis.evidence}"
        return f"With the clean error held fixed, {told}."
    before = analysis.overall[analysis.claim, analysis.loss].spearman.sign
    if partial.sign == 0:
        stays = "cannot be told from zero any more" if before else "cannot be told from zero either"
    else:
        stays = "stays" if partial.sign == before else "turns round" if before else "appears"
        stays += " (and is the contrary of the claim)" if partial.sign < 0 and not before else ""
    return f"With the clean error held fixed, the correlation with RLoss {stays} (Spearman {estimate(partial)})."


def _beyond_fit(analysis: Analysis) -> str:
    told = [
        f"{', '.join(numbers)} ({analysis.names[measure]})"
        for measure in analysis.measures
        if (
            numbers := [
                f"{estimate(e)} with {analysis.outcomes[k]}"
                for (m, k), e in analysis.beyond_fit.items()
                if m == measure and not math.isnan(e.value)
            ]
        )
    ]
    return f"With the RLoss on training images held fixed, Spearman is {'; '.join(told)}." if told else ""


def _early(analysis: Analysis) -> str:
    correlations = {k: c for (m, k), c in analysis.early.items() if m == analysis.claim}
    if not correlations:
        return ""
    most = max(correlations.values(), key=lambda c: c.models)
    return f"Over the early-stopped networks alone ({_models(most, analysis)}), {_spearmans(analysis, correlations)}."


def _within(analysis: Analysis) -> str:
    """Of single methods, whose networks differ in seed, hyper-parameters and early stopping."""
    each = {k[0]: c for k, c in analysis.within.items() if k[0] and k[1:] == (analysis.claim, analysis.loss)}
    parts = []
    if each:
        parts.append(
            f"flatness and RLoss go together in {sum(c.spearman.value > 0 for c in each.values())} of {len(each)}"
        )
    if judged := [c for c in each.values() if c.clusters >= FEW]:
        clear = sum(c.spearman.sign > 0 for c in judged)
        parts[0] += f", clearly so in {clear} of the {len(judged)} with enough runs to tell"
    seeds = {k: c for (m, k), c in analysis.seeds.items() if m == analysis.claim}
    pooled = {
        k: c
        for (method, m, k), c in analysis.within.items()
        if (method, m) == ("", analysis.claim) and not (k in seeds and _same(c, seeds[k]))
    }
    if pooled:
        parts.append(f"as differences from each method's mean, {_spearmans(analysis, pooled)}")
    text = "No method has enough networks of its own to look within methods."
    if parts:
        of = "last and early-stopped networks of all seeds and hyper-parameters"
        text = f"Within methods ({of}), {'; '.join(parts)}."
    if seeds:
        told = _spearmans(analysis, seeds)
        text += f" Between seeds alone (last networks, as differences from their configuration's mean), {told}."
    return text


def _same(within: Correlation, seeds: Correlation) -> bool:
    """Whether a method's networks that have the outcome differ in nothing but the seed."""
    return (within.models, within.spearman.value) == (seeds.models, seeds.spearman.value)


def _spearmans(analysis: Analysis, correlations: dict[str, Correlation]) -> str:
    """With every outcome."""
    told = [f"{estimate(c.spearman)} with {analysis.outcomes[k]}" for k, c in correlations.items()]
    return f"Spearman {', '.join(told)}"


def _best(analysis: Analysis) -> str:
    parts = []
    for key, contest in analysis.best.items():
        first = max(contest.shares, key=lambda m: contest.shares[m])
        spearman = analysis.overall[first, key].spearman
        outcome = f"{analysis.outcomes[key]}, over {counted(contest.models, 'network')}"
        if math.isnan(spearman.low):
            parts.append(f"{outcome}: too few to say")
        elif not any(analysis.overall[m, key].spearman.sign for m in contest.shares):
            parts.append(f"{outcome}: none that can be told from zero")
        else:
            strongest = f"the strongest in {contest.shares[first]:.0%} of resamples"
            over = analysis.overall[first, key].models
            whole = f" over {counted(over, 'network')}" if over != contest.models else ""
            parts.append(f"{outcome}: {analysis.names[first]} (Spearman {estimate(spearman)}{whole}, {strongest})")
    if not parts:
        return ""
    count = max(len(contest.shares) for contest in analysis.best.values())
    return f"Of {count} measures, the one that goes best with each outcome: {'; '.join(parts)}."


def _paper(analysis: Analysis) -> str:
    """The published Table 1 against the same correlation here."""
    parts = []
    for key, theirs in analysis.paper.items():
        ours = analysis.overall.get((analysis.claim, key))
        if ours is None:
            continue
        judged = _agreement(ours.spearman, theirs.spearman, analysis.against[key])
        parts.append(
            f"for the {analysis.outcomes[key]} Spearman {estimate(theirs.spearman)} in the paper and "
            f"{estimate(ours.spearman)} here: {judged}"
        )
    if not parts:
        return ""
    return f"Against the {next(iter(analysis.paper.values())).models} rows of the paper's Table 1: {'; '.join(parts)}."


def _agreement(ours: Estimate, theirs: Estimate, against: Estimate) -> str:
    """`against`: the difference of the two, which decides."""
    if math.isnan(against.low):
        return "too few networks here to compare"
    if against.sign and ours.sign and ours.sign == theirs.sign:
        more = "stronger" if abs(ours.value) > abs(theirs.value) else "weaker"
        return f"it agrees in sign, and is {more} here (difference {estimate(against)})"
    if against.sign:
        return f"it disagrees (difference {estimate(against)})"
    if not ours.sign and not theirs.sign:
        return "neither can be told from zero"
    return "it agrees" if ours.sign == theirs.sign else "no contradiction, but too little to agree"


def _strength(coefficient: Estimate) -> str:
    size = abs(coefficient.value)
    words = ((0.8, "A very strong"), (0.6, "A strong"), (0.4, "A moderate"), (0.2, "A weak"))
    return next((word for least, word in words if size >= least), "A very weak") + " correlation"


def _coefficients(correlation: Correlation) -> str:
    return (
        f"Pearson {estimate(correlation.pearson)}, Spearman {estimate(correlation.spearman)}, "
        f"Kendall {estimate(correlation.kendall)}" + ("" if correlation.clusters < FEW else " (95 % intervals)")
    )


def _models(correlation: Correlation, analysis: Analysis) -> str:
    if correlation.models == correlation.clusters:
        return counted(correlation.models, "network")
    return f"{correlation.models} networks of {correlation.clusters} {analysis.evidence}"
