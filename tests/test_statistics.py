"""Correlations and their intervals, against scipy and against resampling by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hookflat.reporting.statistics import (
    Sample,
    best_predictor,
    centred,
    correlation,
    difference,
    line,
    partial_spearman,
    resample,
)

COEFFICIENTS = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
small = st.integers(-4, 4).map(float)


@given(st.lists(st.tuples(small, small), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_coefficients_are_scipys_ties_and_all(pairs):
    x, y = zip(*pairs, strict=True)
    result = correlation(x, y, resamples=10)
    constant = len(set(x)) == 1 or len(set(y)) == 1
    for name, theirs in COEFFICIENTS.items():
        mine = getattr(result, name).value
        if constant:
            assert math.isnan(mine)
        else:
            assert mine == pytest.approx(theirs(x, y).statistic, abs=1e-9)


def _data(n=25, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x = z + rng.normal(size=n)
    return x, 0.5 * x + z + rng.normal(size=n), z


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_resample_is_scipys_coefficient_of_the_drawn_models(name):
    """The counts of a resample, drawn out into models, given to scipy."""
    from hookflat.reporting import statistics

    x, y, _ = _data(12)
    x[3] = x[4]
    counts = resample(list(range(12)), 20, seed=1)
    mine = getattr(statistics, f"_{name}")(x, y, counts)
    for row, value in zip(counts.astype(int), mine, strict=True):
        drawn = np.repeat(np.arange(12), row)
        assert value == pytest.approx(COEFFICIENTS[name](x[drawn], y[drawn]).statistic, abs=1e-9)


def test_intervals_are_scipys_bootstrap():
    x, y, _ = _data()
    result = correlation(x, y, resamples=20_000)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b, axis=-1: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True, vectorized=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert (result.pearson.low, result.pearson.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_a_difference_is_that_of_two_bootstraps_by_hand():
    (a, b, _), (c, d, _) = _data(25), _data(40, seed=1)
    d = d[::-1].copy()
    result = difference(Sample(a, b, range(25)), Sample(c, d, range(40)), resamples=4000)
    assert result.value == pytest.approx(stats.spearmanr(a, b).statistic - stats.spearmanr(c, d).statistic, abs=1e-9)
    rng = np.random.default_rng(5)
    drawn = [(rng.integers(0, 25, 25), rng.integers(0, 40, 40)) for _ in range(2000)]
    theirs = [stats.spearmanr(a[i], b[i]).statistic - stats.spearmanr(c[j], d[j]).statistic for i, j in drawn]
    assert (result.low, result.high) == pytest.approx(np.percentile(theirs, [2.5, 97.5]), abs=0.05)
    assert math.isnan(difference(Sample(a, b, range(25)), Sample(c[:4], d[:4], range(4))).low)


def test_intervals_have_their_coverage():
    """Of a known correlation of 0.5: 95 %, a little less on thirty models."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        x = rng.normal(size=30)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=30)
        interval = correlation(x, y, resamples=400).pearson
        covered.append(interval.low < 0.5 < interval.high)
    assert 0.88 <= np.mean(covered) <= 0.98


def test_partial_correlation_is_that_of_the_residuals():
    x, y, z = _data()
    result = correlation(x, y, given=z, resamples=10)
    residuals = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert result.partial_pearson.value == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-9)
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    residuals = [v - np.polyval(np.polyfit(ranks[2], v, 1), ranks[2]) for v in ranks[:2]]
    assert result.partial_spearman.value == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-9)
    assert math.isnan(correlation(x, y, given=x, resamples=10).partial_pearson.value)


def test_seeds_of_a_configuration_are_drawn_together():
    """Three copies of every model are no more evidence than one: the same interval, not one of a third the width."""
    x, y, _ = _data()
    clusters = list(range(25)) * 3
    once, thrice = (correlation(x, y), correlation(np.tile(x, 3), np.tile(y, 3), clusters=clusters))
    for name in COEFFICIENTS:
        if name != "kendall":  # copies are ties, which tau-b counts
            assert getattr(thrice, name) == pytest.approx(getattr(once, name), abs=1e-9)
    alone = correlation(np.tile(x, 3), np.tile(y, 3)).pearson
    assert alone.high - alone.low < 0.75 * (once.pearson.high - once.pearson.low)
    assert (thrice.models, thrice.clusters) == (75, 25)


def test_the_best_predictor_wins_the_resamples():
    x, y, _ = _data(40)
    noise = np.random.default_rng(5).normal(size=40)
    shares = best_predictor({"noise": noise, "x": x, "same": y}, y, list(range(40)), resamples=500)
    assert shares["same"] == 1.0
    assert sum(shares.values()) == pytest.approx(1)
    assert best_predictor({"noise": noise, "x": x}, y, list(range(40)), resamples=500)["x"] > 0.95
    tied = best_predictor({"constant": np.ones(40), "x": x, "twice": 2 * x}, y, list(range(40)), resamples=50)
    assert tied == {"constant": 0, "x": 0.5, "twice": 0.5}


def test_few_clusters_have_no_interval():
    x, y, _ = _data(12)
    few, enough = (correlation(x, y, clusters=[i % n for i in range(12)], resamples=50) for n in (5, 6))
    assert few.spearman.value == enough.spearman.value
    assert (math.isnan(few.spearman.low), few.spearman.sign, math.isnan(enough.spearman.low)) == (True, 0, False)


def test_partial_correlations_of_few_clusters_have_no_interval():
    """Each variable that is held fixed takes a dimension of them."""
    for n, held in ((9, 1), (10, 1), (13, 2), (14, 2)):
        x, y, z = _data(n)
        one = partial_spearman(x, y, [z, x * y][:held], resamples=50)
        enough = n >= 6 + 4 * held
        assert not math.isnan(one.value)
        assert math.isnan(one.low) != enough
        if held == 1:
            assert math.isnan(correlation(x, y, given=z, resamples=50).partial_spearman.low) != enough


def test_partial_correlations_use_the_models_with_a_control():
    x, y, z = _data()
    missing = np.where(np.arange(25) < 5, np.nan, z)
    result, rest = correlation(x, y, given=missing, resamples=10), correlation(x[5:], y[5:], given=z[5:], resamples=10)
    assert result.partial_spearman.value == pytest.approx(rest.partial_spearman.value)
    assert result.models == 25


def test_an_interval_says_whether_it_leaves_out_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    assert correlation(x, x + 0.1 * rng.normal(size=40)).pearson.sign == 1
    assert correlation(x, -x + 0.1 * rng.normal(size=40)).spearman.sign == -1
    assert correlation(x, rng.normal(size=40)).kendall.sign == 0
    assert correlation([1, 2, 3], [1, 1, 1]).pearson.sign == 0  # undefined


def test_lines_and_centres_by_hand():
    assert line([0, 1, 2], [1, 3, 5]) == pytest.approx((2, 1))
    assert line([1, 1], [0, 5]) is None
    assert centred([1, 3, 10, 20], [0, 0, 1, 1]) == [-1, 1, -5, 5]
