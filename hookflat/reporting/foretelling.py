"""Which measure predicts, in words; that none does where none does."""

from __future__ import annotations

import math

from hookflat.reporting.analysis import Analysis
from hookflat.reporting.phrases import counted, estimate, minus
from hookflat.reporting.ranking import Ranked


def foretold(analysis: Analysis) -> str:
    """Of the gap of RErr, or what there is of it, in a sentence; "" where nothing can be said."""
    keys = list(analysis.outcomes)[::-1]  # gap of RErr, gap of RLoss, RErr, RLoss
    key = next((key for key in keys if (best := _best(analysis, key)) and best.prediction), "")
    best = _best(analysis, key)
    if best is None or best.prediction is None or math.isnan(best.prediction.r2.low):
        return ""
    count, name = sum(ranked.prediction is not None for ranked in _of(analysis, key)), analysis.names[best.measure]
    of = counted(count, "measure")
    of += f" ({best.rankings} different rankings)" if best.rankings < len(_of(analysis, key)) else ""
    what, nothing = f"the {analysis.outcomes[key]} of a method not seen before", "a baseline that knows nothing"
    if not best.prediction.beats_the_baseline:
        none = f"None of {of} predicts" if count > 1 else f"The one measure, {name}, does not predict"
        return f"{none} {what} better than {nothing}."
    error, baseline = (off(analysis, key, value) for value in (best.prediction.error, best.prediction.baseline))
    alike = sum(ranked.behind is not None and ranked.behind.high >= 0 for ranked in _of(analysis, key))
    tied = f"; {counted(alike, 'other')} cannot be told from it" if alike else ""
    where = f"{f'Best of {of} on' if count > 1 else 'On'} {counted(best.models, 'network')}"
    text = f"{where}, {name} predicts {what}: {error} off, {nothing} {baseline}"
    return f"{text}{_beside_the_fit(analysis, best)}{tied}."


def _beside_the_fit(analysis: Analysis, best: Ranked) -> str:
    if best.fit is None or best.beyond is None:
        return ""
    more = {1: "which is worse", -1: "which is better", 0: "which may be as good"}[best.beyond.sign]
    return f", one that knows the RLoss on training images {off(analysis, best.outcome, best.fit.error)}, {more}"


def predictions(analysis: Analysis) -> str:
    """Out of sample, every outcome."""
    parts = []
    of: dict[str, None] = {}
    for key, heading in analysis.outcomes.items():
        best = _best(analysis, key)
        if best is None or best.prediction is None:
            continue
        prediction = best.prediction
        of[f"{counted(prediction.methods, 'method')} but one ({counted(best.models, 'network')})"] = None
        if math.isnan(prediction.r2.low):
            parts.append(f"the {heading} cannot be judged from {counted(prediction.methods, 'method')}")
        elif not any(r.prediction and r.prediction.beats_the_baseline for r in _of(analysis, key)):
            parts.append(f"for the {heading} none beats the baseline")
        else:
            better = (
                f"{off(analysis, key, prediction.error)} off, the baseline {off(analysis, key, prediction.baseline)}"
            )
            parts.append(f"the {heading} by {analysis.names[best.measure]} ({better}; R² {estimate(prediction.r2)})")
    if not parts:
        return ""
    how = "to predict that one, against a baseline that knows the mean alone"
    return f"Fitted on all of {' or '.join(of)}, {how}: {'; '.join(parts)}. Intervals are for all measures together."


def changes(analysis: Analysis) -> str:
    """Under the change of one hyper-parameter."""
    parts = []
    for key, heading in analysis.outcomes.items():
        granulated = [(r, r.granulated) for r in _of(analysis, key) if r.granulated]
        if not granulated:
            continue
        ranked, psi = max(granulated, key=lambda pair: abs(pair[1].value))  # of margins larger is better
        lowest = psi.psi[psi.worst]
        least = f"; least for {axis(psi.worst)}, {minus(f'{lowest:.2f}')}" if lowest != psi.value else ""
        alike = sum(abs(other.value) > abs(psi.value) - 1e-9 for _, other in granulated) - 1
        name = analysis.names[ranked.measure] + (f" and {counted(alike, 'other')}" if alike else "")
        of = f"{counted(psi.pairs, 'pair')}, {counted(len(psi.psi), 'hyper-parameter')}"
        parts.append(f"the {heading} by {name} ({minus(f'{psi.value:.2f}')}, {of}{least})")
    if not parts:
        return ""
    return f"Where one hyper-parameter alone changes, the sign of its effect is told best (|Psi|): {'; '.join(parts)}."


def axis(name: str) -> str:
    """A hyper-parameter in words: "awp xi" of "plugins.awp.xi"."""
    return name.removeprefix("plugins.").replace(".", " ").replace("_", " ")


def off(analysis: Analysis, key: str, error: float) -> str:
    """An error of a prediction in the unit of the outcome."""
    return f"{100 * error:.1f} points" if key in analysis.percent else f"{error:.3g}"


def _of(analysis: Analysis, key: str) -> list[Ranked]:
    return [ranked for ranked in analysis.ranking if ranked.outcome == key]


def _best(analysis: Analysis, key: str) -> Ranked | None:
    return next(iter(_of(analysis, key)), None)
