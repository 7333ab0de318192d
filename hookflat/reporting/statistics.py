"""Correlations with bootstrap intervals. A resample is a vector of counts, so a thousand of them are a few products.

Resampled are whole configurations, all seeds of one together: seeds of the same recipe are no independent evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 5000
FEW = 6
"""Clusters, below which resamples are so few different ones that an interval would mean nothing."""
FEW_MORE = 4
"""As many more for each variable that is held fixed: of few points a fit leaves a line, of correlation 1 or -1."""


class Estimate(NamedTuple):
    """A coefficient in [-1, 1] and its 95 % percentile interval; NaN where it is not defined.

    An interval takes `FEW` clusters, and `FEW_MORE` for each variable that is held fixed.
    """

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, 0 where it does not."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Correlation:
    """Two variables over `models` models of `clusters` configurations; partial: given a third variable."""

    pearson: Estimate
    spearman: Estimate
    kendall: Estimate
    partial_pearson: Estimate | None
    partial_spearman: Estimate | None
    models: int
    clusters: int


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    *,
    clusters: Sequence[int] | None = None,
    given: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Pearson, Spearman and Kendall (tau-b) of `x` and `y`, both (n,), with bootstrap intervals.

    `clusters` (n,): models of one number are drawn together; without it each is its own. `given` (n,): also the
    partial correlations with it held fixed, over the models where it is not NaN.
    """
    numbers = np.arange(len(x)) if clusters is None else np.asarray(clusters)
    a, b = np.asarray(x, float), np.asarray(y, float)
    counts = resample(numbers, resamples, seed)
    values = [_estimate(f(a, b, counts), numbers) for f in (_pearson, _spearman, _kendall)]
    partial: list[Estimate | None] = [None, None]
    known = np.zeros(len(a), bool) if given is None else ~np.isnan(np.asarray(given, float))
    if known.sum() > 3:
        c = np.asarray(given, float)[known]
        counts = resample(numbers[known], resamples, seed)
        values_given = (_given(f, a[known], b[known], c, counts) for f in (_pearson, _spearman))
        partial = [_estimate(v, numbers[known], fixed=1) for v in values_given]
    return Correlation(*values, *partial, models=len(a), clusters=len(set(numbers.tolist())))


def spearman(
    x: Sequence[float], y: Sequence[float], *, clusters: Sequence[int], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Spearman alone, as `correlation` has it."""
    numbers = np.asarray(clusters)
    counts = resample(numbers, resamples, seed)
    return _estimate(_spearman(np.asarray(x, float), np.asarray(y, float), counts), numbers)


def partial_spearman(
    x: Sequence[float],
    y: Sequence[float],
    given: Sequence[Sequence[float]],
    *,
    clusters: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Spearman of `x` and `y` with all variables of `given` (k, n) held fixed: of what a linear fit to their ranks
    leaves of both ranks. NaN where it leaves nothing of one."""
    numbers = np.arange(len(x)) if clusters is None else np.asarray(clusters)
    counts = resample(numbers, resamples, seed)
    ranks = np.stack([_ranks(np.asarray(v, float), counts) for v in (x, y, *given)], axis=1)
    weights = (counts / counts.sum(axis=1, keepdims=True))[:, None]
    centred = ranks - (weights * ranks).sum(axis=2, keepdims=True)
    moments = (weights * centred) @ centred.transpose(0, 2, 1)
    fixed = np.linalg.pinv(moments[:, 2:, 2:], hermitian=True)
    left = moments[:, :2, :2] - moments[:, :2, 2:] @ fixed @ moments[:, 2:, :2]
    spread = left[:, [0, 1], [0, 1]]
    defined = (spread > 1e-9 * np.maximum(moments[:, [0, 1], [0, 1]], 1e-12)).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(defined, left[:, 0, 1] / np.sqrt(spread.prod(axis=1)), np.nan).clip(-1, 1)
    return _estimate(values, numbers, fixed=len(given))


class Sample(NamedTuple):
    """Two variables (n,) and the cluster (n,) of each model."""

    x: Sequence[float]
    y: Sequence[float]
    clusters: Sequence[int]


def difference(first: Sample, second: Sample, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Spearman of one sample minus that of another, each resampled on its own."""
    values = [
        _spearman(np.asarray(s.x, float), np.asarray(s.y, float), resample(s.clusters, resamples, seed + i))
        for i, s in enumerate((first, second))
    ]
    fewer = min(first.clusters, second.clusters, key=lambda clusters: len(set(clusters)))
    return _estimate(values[0] - values[1], np.asarray(fewer))


def best_predictor(
    xs: Mapping[str, Sequence[float]],
    y: Sequence[float],
    clusters: Sequence[int],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """For each variable, the share of the resamples in which it has the largest absolute Spearman with `y` (n,).

    Equal ones share a resample; one that is constant in it has none.
    """
    counts = resample(clusters, resamples, seed)
    target = np.asarray(y, float)
    strength = np.stack([np.abs(_spearman(np.asarray(x, float), target, counts)) for x in xs.values()])[:, 1:]
    strength = np.where(np.isnan(strength), -1, strength)
    won = (strength >= strength.max(axis=0) - 1e-12) & (strength >= 0)
    shares = (won / np.maximum(won.sum(axis=0), 1)).mean(axis=1)
    return dict(zip(xs, shares.tolist(), strict=True))


def centred(values: Sequence[float], clusters: Sequence[int]) -> list[float]:
    """Values (n,) minus the mean of their cluster."""
    numbers, v = np.asarray(clusters), np.asarray(values, float)
    means = {c: v[numbers == c].mean() for c in set(clusters)}
    return [float(value - means[c]) for value, c in zip(v, clusters, strict=True)]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Slope and intercept of the least-squares line; None for fewer than two different `x`."""
    if len(set(x)) < 2:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def resample(clusters: Sequence[int] | NDArray[np.int64], resamples: int, seed: int) -> Array:
    """How often each of n models is drawn: (1 + resamples, n). The first row is the sample itself."""
    names, of = np.unique(clusters, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.concatenate([np.ones((1, len(of))), drawn[:, of].astype(float)])


def _estimate(values: Array, clusters: NDArray[np.int64], fixed: int = 0) -> Estimate:
    """The sample's coefficient, with so many variables held fixed, and the interval of the resamples' that have one."""
    others = values[1:][~np.isnan(values[1:])]
    enough = len(others) and len(np.unique(clusters)) >= FEW + FEW_MORE * fixed
    low, high = np.percentile(others, [2.5, 97.5]) if enough else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))


def _pearson(x: Array, y: Array, counts: Array) -> Array:
    """(B,) coefficients; `x` and `y` are (n,) or (B, n), `counts` (B, n)."""
    weights = counts / counts.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True)
    dy = y - (weights * y).sum(axis=1, keepdims=True)
    spread = [np.sqrt((weights * d**2).sum(axis=1)) for d in (dx, dy)]
    size = [np.abs(v).max() for v in (x, y)]
    defined = (spread[0] > 1e-12 * size[0]) & (spread[1] > 1e-12 * size[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, (weights * dx * dy).sum(axis=1) / (spread[0] * spread[1]), np.nan).clip(-1, 1)


def _spearman(x: Array, y: Array, counts: Array) -> Array:
    return _pearson(_ranks(x, counts), _ranks(y, counts), counts)


def _ranks(x: Array, counts: Array) -> Array:
    """(B, n) ranks of x (n,) in each resample, the mean of equal ones."""
    below, equal = (x[None, :] < x[:, None]).astype(float), (x[None, :] == x[:, None]).astype(float)
    return counts @ below.T + (counts @ equal.T + 1) / 2


def _kendall(x: Array, y: Array, counts: Array) -> Array:
    """Tau-b: concordant minus discordant pairs over the geometric mean of the untied ones."""
    sx, sy = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    pairs = lambda matrix: ((counts @ matrix) * counts).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs(sx * sy) / np.sqrt(pairs(sx**2) * pairs(sy**2))


def _given(of: Callable[[Array, Array, Array], Array], x: Array, y: Array, z: Array, counts: Array) -> Array:
    """The partial correlation of x and y with z held fixed."""
    xy, xz, yz = of(x, y, counts), of(x, z, counts), of(y, z, counts)
    rest = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(rest > 1e-12, (xy - xz * yz) / np.sqrt(rest), np.nan).clip(-1, 1)
