"""Which measure predicts: against a hand computation, scipy, and data in which the answer was planted."""

import math

import numpy as np
import pytest
from scipy import stats

from hookflat.reporting.prediction import behind, different_rankings, granulated, out_of_sample, single_changes
from hookflat.reporting.statistics import correlation, partial_spearman


def test_leaving_one_method_out_by_hand():
    """Three methods of one network: the line through the other two, at the left-out's place among them."""
    x, y = [1.0, 2.0, 3.0], [10.0, 20.0, 40.0]
    result = out_of_sample(x, y, "abc", resamples=10)
    # shares of two fitted networks are 1/4 and 3/4; the left-out's are 0, 1/2, 1
    lines = [(20 + 40) / 2 - (40 - 20) * 2 * 0.5, (10 + 40) / 2, (10 + 20) / 2 + (20 - 10) * 2 * 0.5]
    means = [30.0, 25.0, 15.0]
    assert result.error == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in zip(y, lines, strict=True)) / 3))
    assert result.baseline == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in zip(y, means, strict=True)) / 3))
    assert result.r2.value == pytest.approx(1 - result.error**2 / result.baseline**2)
    assert math.isnan(result.r2.low)  # of three methods


@pytest.mark.parametrize("tried", [1, 5])
def test_the_interval_of_r2_is_scipys_bootstrap_over_methods(tried):
    rng = np.random.default_rng(3)
    x = rng.normal(size=24)
    result = out_of_sample(x, x + rng.normal(size=24), range(24), tried=tried, resamples=20_000)
    theirs = stats.bootstrap(
        tuple(result.squared),
        lambda a, b, axis=-1: 1 - a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        confidence_level=1 - 0.05 / tried,
        rng=rng,
    ).confidence_interval
    assert result.r2[1:] == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_how_far_a_measure_is_behind_another_is_the_difference_of_their_r2_in_every_resample():
    rng = np.random.default_rng(1)
    y = rng.normal(size=9)
    one, two = (out_of_sample(y + s * rng.normal(size=9), y, range(9), resamples=50) for s in (0.1, 1.0))
    result = behind(two, one, resamples=50)
    counts = [np.ones(9), *(np.bincount(drawn, minlength=9) for drawn in rng.integers(9, size=(2000, 9)))]
    r2 = [[1 - (p.squared[0] @ c) / (p.squared[1] @ c) for c in counts] for p in (two, one)]
    less = np.subtract(*r2)
    assert result.value == pytest.approx(two.r2.value - one.r2.value) == pytest.approx(less[0])
    many = behind(two, one, resamples=2000)
    assert (many.low, many.high) == pytest.approx(np.percentile(less[1:], [2.5, 97.5]), abs=0.1)
    together = behind(two, one, tried=5, resamples=50)  # as many resamples as its ends ask for
    assert (together.low, together.high) == pytest.approx(np.percentile(less[1:], [0.5, 99.5]), abs=0.3)
    assert together.low < many.low < many.high < together.high
    assert behind(one, one, resamples=50) == (0, 0, 0)


def test_a_method_counts_once_however_many_seeds_it_has():
    rng = np.random.default_rng(0)
    x, y = rng.random(8), rng.random(8)
    once = out_of_sample(x, y, range(8), resamples=10)
    many = [i for i in range(8) for _ in range(3)]
    assert out_of_sample(x[many], y[many], many, resamples=10).error == pytest.approx(once.error)


def test_no_monotone_change_of_the_measure_alters_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(size=20)
    assert out_of_sample(np.exp(3 * x), y, range(20)) == out_of_sample(x, y, range(20))


def test_nothing_beats_the_baseline_where_nothing_predicts_and_all_of_many_are_judged_together():
    """Ten measures without any relation: in ten studies at the most one is called better."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(10):
        y = rng.normal(size=20)
        result = [out_of_sample(rng.normal(size=20), y, range(20), tried=10, resamples=500) for _ in range(10)]
        false += any(p.beats_the_baseline for p in result)
    assert false <= 1
    x = rng.normal(size=20)
    assert out_of_sample(x, x + 0.3 * rng.normal(size=20), range(20), tried=20, resamples=1000).beats_the_baseline


def test_where_many_are_judged_together_the_interval_does_not_hang_on_the_seed():
    rng = np.random.default_rng(2)
    y = rng.normal(size=15)
    x = y + 0.3 * rng.normal(size=15)
    lows = [out_of_sample(x, y, range(15), tried=62, seed=seed).r2.low for seed in range(8)]
    assert np.ptp(lows) < 0.2  # 0.45 of 5000 resamples


def test_one_ranking_and_its_reverse_and_any_monotone_change_count_once():
    x = [3.0, 1.0, 2.0, 2.0]
    assert different_rankings([x, [v**3 for v in x], [-v for v in x]]) == 1
    assert different_rankings([x, [3.0, 1.0, 2.0, 2.5], [1.0] * 4]) == 3


def test_too_few_methods_and_outcomes_that_do_not_vary():
    assert out_of_sample([1, 2, 3], [1, 2, 3], "aab") is None
    assert out_of_sample([1, 2, 3, 4], [5.0] * 4, "abcd") is None
    constant = out_of_sample([1.0] * 6, [1, 2, 3, 4, 5, 6], range(6))
    assert constant.error == constant.baseline


def test_the_granulated_coefficient_by_hand():
    """Jiang et al. 2020, eq. 5: two hyper-parameters, the one followed always, the other in one group of two."""
    changes = single_changes([{"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}])
    assert changes == {"a": [[(0, 1)], [(2, 3)]], "b": [[(0, 2)], [(1, 3)]]}
    result = granulated(changes, [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 2.5])
    # a: (0, 1) agrees, (2, 3) agrees: (1 + 1) / 2. b: (0, 2) agrees, (1, 3) does not: (1 - 1) / 2.
    assert result.psi == {"a": 1.0, "b": 0.0}
    assert (result.value, result.worst) == (0.5, "b")
    assert granulated(changes, [4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 2.0, 2.5]).worst == "b"  # of -1 and 0
    assert granulated(changes, [1.0, 2.0, 3.0, math.nan], [1.0, 3.0, 2.0, 2.5]).psi == {"a": 1.0, "b": 1.0}


def test_a_group_of_the_granulated_coefficient_is_scipy_s_kendall():
    rng = np.random.default_rng(0)
    x, y = rng.random(7), rng.random(7)
    result = granulated(single_changes([{"a": i, "run.seed": 0} for i in range(7)]), x, y)
    assert result.value == pytest.approx(stats.kendalltau(x, y).statistic)


def test_seeds_are_no_hyper_parameter_and_a_table_is_one():
    base = {"loss.name": "at", "optimizer.lr": 0.1}
    trades = {"loss.name": "trades", "loss.beta": 6.0, "optimizer.lr": 0.1}
    assert single_changes([base | {"run.seed": s} for s in range(3)]) == {}
    models = [options | {"run.seed": s} for options in (base, trades) for s in range(2)]
    assert single_changes(models) == {"loss": [[(0, 2)], [(1, 3)]]}  # AT and TRADES of the same seed
    models.append(trades | {"loss.beta": 9.0, "run.seed": 0})
    assert single_changes(models) == {"loss": [[(0, 2), (0, 4)], [(1, 3)]], "loss.beta": [[(2, 4)]]}
    assert single_changes([base, trades | {"optimizer.lr": 0.2}]) == {}


def test_partial_spearman_is_that_of_the_residuals_of_ranks():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 40))
    x, y = z[0] + rng.normal(size=40), z[0] - z[1] + rng.normal(size=40)
    rank = stats.rankdata
    fixed = np.column_stack([np.ones(40), rank(z[0]), rank(z[1])])
    left = [rank(v) - fixed @ np.linalg.lstsq(fixed, rank(v))[0] for v in (x, y)]
    assert partial_spearman(x, y, z, resamples=50).value == pytest.approx(stats.pearsonr(*left).statistic)
    one = correlation(x, y, given=z[0], resamples=50).partial_spearman
    assert partial_spearman(x, y, z[:1], resamples=50) == pytest.approx(one)
    twice = partial_spearman(x, y, [*z, z[0]], resamples=50)
    assert twice.value == pytest.approx(partial_spearman(x, y, z, resamples=50).value)
    assert math.isnan(partial_spearman(x, y, [x], resamples=50).value)


def test_the_interval_of_partial_spearman_is_scipys_bootstrap():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(2, 30))
    x, y = z.sum(axis=0) + rng.normal(size=30), z[0] + rng.normal(size=30)

    def of_residuals(*values):
        ranks = np.stack([stats.rankdata(v) for v in values])
        fixed = np.vstack([ranks[2:], np.ones(ranks.shape[1])]).T
        left = [r - fixed @ np.linalg.lstsq(fixed, r, rcond=None)[0] for r in ranks[:2]]
        return np.corrcoef(*left)[0, 1]

    theirs = stats.bootstrap(
        (x, y, *z), of_residuals, paired=True, vectorized=False, method="percentile", n_resamples=1500, rng=rng
    ).confidence_interval
    assert partial_spearman(x, y, z)[1:] == pytest.approx((theirs.low, theirs.high), abs=0.04)
