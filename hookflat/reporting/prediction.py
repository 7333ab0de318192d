"""Does a measure predict? Out of sample, and under the change of one hyper-parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

import numpy as np

from hookflat.reporting.statistics import FEW, RESAMPLES, Array, Estimate, resample

_SEED = "run.seed"
_BEYOND = 50
"""Resamples beyond each end of an interval, at least: the ends of fewer hang on their seed."""


@dataclass(frozen=True)
class Prediction:
    """How well a measure predicts an outcome of a method that it was not fitted on.

    `error`, `baseline`: root mean squared errors in the outcome's unit, every method counted once; the baseline's
    prediction is the mean outcome of the other methods' networks. `r2`: 1 - error^2 / baseline^2. `squared`:
    (2, methods) mean squared errors of each method, the measure's and the baseline's.
    """

    error: float
    baseline: float
    r2: Estimate
    squared: Array = field(repr=False, compare=False)

    @property
    def methods(self) -> int:
        """How many were left out, one after the other."""
        return self.squared.shape[1]

    @property
    def beats_the_baseline(self) -> bool:
        """Whether the interval says so."""
        return self.r2.low > 0


def out_of_sample(
    x: Sequence[float],
    y: Sequence[float],
    methods: Sequence[Hashable],
    *,
    tried: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Prediction | None:
    """Leave one method out, fit on the rest, predict the left-out: `x`, `y` and `methods` are (n,).

    The fit is a least-squares line through `y` against the share of the fitted networks with a smaller `x`, which no
    monotone change of the measure alters. The interval of R^2 is of the bootstrap over methods, 95 % for all of the
    `tried` measures together (Bonferroni), so many measures take more than `resamples`. None for fewer than three
    methods, or where the outcome does not vary.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    names, of = np.unique(np.asarray([str(m) for m in methods]), return_inverse=True)
    if len(names) < 3:
        return None
    errors = np.empty((2, len(names)))
    for i in range(len(names)):
        out, rest = of == i, of != i
        share = _share_below(a[rest], a[rest])
        slope, intercept = np.polyfit(share, b[rest], 1) if np.ptp(share) > 0 else (0.0, b[rest].mean())
        predicted = intercept + slope * _share_below(a[rest], a[out])
        errors[:, i] = ((b[out] - predicted) ** 2).mean(), ((b[out] - b[rest].mean()) ** 2).mean()
    if errors[1].sum() <= 1e-24 * max(1.0, (b**2).mean()):
        return None
    tail = 0.025 / tried
    ours, theirs = errors @ _counts(len(names), _enough(resamples, tail), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - ours / theirs
    low, high = np.nanquantile(r2[1:], [tail, 1 - tail]) if len(names) >= FEW else (np.nan, np.nan)
    estimate = Estimate(float(r2[0]), float(low), float(high))
    return Prediction(*np.sqrt(errors.mean(axis=1)).tolist(), estimate, errors)


def behind(
    other: Prediction, best: Prediction, *, tried: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """R^2 of one measure minus that of another, both of the same networks, over the same resamples of methods.

    The interval is 95 % for `tried` such differences together, as that of `out_of_sample`.
    """
    tail = 0.025 / tried
    counts = _counts(best.methods, _enough(resamples, tail), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        less = ((best.squared[0] - other.squared[0]) @ counts) / (best.squared[1] @ counts)
    low, high = np.nanquantile(less[1:], [tail, 1 - tail]) if best.methods >= FEW else (np.nan, np.nan)
    return Estimate(float(less[0]), float(low), float(high))


def different_rankings(columns: Sequence[Sequence[float]]) -> int:
    """How many different rankings the columns make of their rows; one and its reverse count once."""
    ranks = [_share_below(*(np.asarray(column, float),) * 2).round(9) for column in columns]
    return len({min(tuple(share), tuple((1 - share).round(9))) for share in ranks})


def _enough(resamples: int, tail: float) -> int:
    return max(resamples, round(_BEYOND / tail))


@lru_cache(maxsize=2)
def _counts(methods: int, resamples: int, seed: int) -> Array:
    """How often each method is drawn, (methods, 1 + resamples): kept, as all measures and outcomes share them."""
    return resample(range(methods), resamples, seed).T


def _share_below(fitted: Array, values: Array) -> Array:
    """The share of `fitted` below each value, equal ones half."""
    below = (fitted[None, :] < values[:, None]).mean(axis=1)
    return below + (fitted[None, :] == values[:, None]).mean(axis=1) / 2


@dataclass(frozen=True)
class Granulated:
    """Agreement in sign under the change of one hyper-parameter alone: psi of each (Jiang et al. 2020, eq. 4 and 5).

    `pairs`: of networks, over all hyper-parameters.
    """

    psi: dict[str, float]
    pairs: int

    @property
    def value(self) -> float:
        """Psi, the mean over hyper-parameters."""
        return float(np.mean(list(self.psi.values())))

    @property
    def worst(self) -> str:
        """The hyper-parameter whose changes the measure follows least, in the direction of Psi."""
        return min(self.psi, key=lambda axis: self.psi[axis] * np.copysign(1, self.value))


Changes = dict[str, list[list[tuple[int, int]]]]
"""Hyper-parameter to groups of pairs of networks, by number."""


def single_changes(options: Sequence[Mapping[str, Hashable]]) -> Changes:
    """Which networks differ in one hyper-parameter alone; `options`: what each was trained with, by dotted name.

    Networks that agree in everything else, the seed too, are a group. A table that differs in several options at once,
    another loss or a plugin that others lack, is one hyper-parameter.
    """
    names = dict.fromkeys(name for table in options for name in table)
    varying = [name for name in names if len({table.get(name) for table in options}) > 1]
    sets = [frozenset((name, table.get(name)) for name in varying) for table in options]
    axes = {name: ([name], 1, 1) for name in varying if name != _SEED}
    for table in dict.fromkeys(name.rpartition(".")[0] for name in axes):
        inside = [name for name in axes if name.rpartition(".")[0] == table]
        if table and len(inside) > 1:
            axes[table] = (inside, 2, len(inside))
    changes = {}
    for axis, (inside, least, most) in axes.items():
        groups: dict[frozenset[tuple[str, Hashable]], list[int]] = defaultdict(list)
        for i, held in enumerate(sets):
            groups[frozenset(pair for pair in held if pair[0] not in inside)].append(i)
        pairs = [
            [(i, j) for i, j in combinations(group, 2) if least <= len(sets[i] - sets[j]) <= most]
            for group in groups.values()
        ]
        if kept := [group for group in pairs if group]:
            changes[axis] = kept
    return changes


def granulated(changes: Changes, x: Sequence[float], y: Sequence[float]) -> Granulated | None:
    """Jiang et al. 2020, "Fantastic Generalization Measures", section 3: the granulated Kendall coefficient.

    Tau of a group is the mean of sign(x - x') sign(y - y') over its pairs, psi of a hyper-parameter the mean of its
    groups. Pairs of which a value is NaN are left out; None where none is left.
    """
    psi, pairs = {}, 0
    for axis, groups in changes.items():
        signs = [[np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in group] for group in groups]
        known = [judged for group in signs if (judged := [s for s in group if not np.isnan(s)])]
        if known:
            psi[axis] = float(np.mean([np.mean(judged) for judged in known]))
            pairs += sum(map(len, known))
    return Granulated(psi, pairs) if psi else None
