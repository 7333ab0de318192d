"""What a report says."""

import csv
import json
import math
from shutil import rmtree

import numpy as np
import pytest
from made_runs import a_study, drawn, network, staged, told, write
from scipy.stats import pearsonr, rankdata, spearmanr

from hookflat import report
from hookflat.reporting.analysis import analyse
from hookflat.reporting.correlations import about_ranking, ranking_lines, statistics_csv
from hookflat.reporting.foretelling import changes, foretold
from hookflat.reporting.formats import without_empty
from hookflat.reporting.gathering import gather
from hookflat.reporting.phrases import estimate
from hookflat.reporting.prediction import behind, out_of_sample
from hookflat.reporting.ranking import controls
from hookflat.reporting.table import published, table1
from hookflat.reporting.words import details, verdict


def test_the_words_say_yes_where_the_claim_holds(tmp_path):
    said = told(a_study(tmp_path, lambda f: 0.5 + 0.8 * f))
    assert said[0].startswith("The claim holds here: networks in flatter places have the lower robust loss (Spearman ")
    assert said[0].endswith(", 36 networks of 12 configurations).")
    assert said[1].startswith("Flatter networks have the lower RErr (")
    said = " ".join(said)
    assert "A very strong correlation of flatness with RLoss over 36 networks" in said
    assert "the correlation with RLoss stays" in said
    assert (
        "go together in 12 of 12; as differences from each method's mean, Spearman" in said
    )  # three seeds tell little
    assert "RLoss, over 36 networks: average-case flatness" in said
    assert "(Spearman" in said


def test_of_few_methods_nothing_is_claimed_with_the_clean_error_held_fixed(tmp_path):
    said = " ".join(told(a_study(tmp_path, lambda f: 0.5 + 0.8 * f, methods=7)))
    assert "With the clean error held fixed, Spearman with RLoss is 0." in said
    assert "; an interval takes 10 configurations." in said


def test_a_few_runs_of_a_method_give_no_interval(tmp_path):
    gathered = gather([a_study(tmp_path, lambda f: 0.5 + 0.8 * f)])
    within = analyse(gathered, 100).within
    of_one, of_all = (within[method, "average_flatness", "rloss"] for method in ("m3", ""))
    assert (of_one.models, of_one.clusters, math.isnan(of_one.spearman.low)) == (6, 3, True)
    assert (of_all.models, of_all.clusters, of_all.spearman.sign) == (72, 12, 1)


def test_the_words_say_no_where_there_is_nothing(tmp_path):
    rng = np.random.default_rng(1)
    said = told(a_study(tmp_path, lambda f: 2 + rng.normal(), seeds=1))
    assert said[0].startswith("The claim is not supported here")
    assert "cannot be told from zero (Spearman" in said[0]
    assert (
        sum(text.startswith("No correlation of flatness with RLoss told from zero over 12 networks") for text in said)
        == 1
    )


def test_no_measure_is_the_best_where_none_says_anything(tmp_path):
    rng = np.random.default_rng(1)
    said = " ".join(told(a_study(tmp_path, lambda f: 2 + rng.normal(), seeds=1)))
    assert "Of 2 measures" in said
    assert "RLoss, over 12 networks: none that can be told from zero; RErr, over 12 networks: none that" in said


def test_a_choice_of_autoattack_s_attacks_is_not_called_autoattack(tmp_path):
    chosen = {"version": "custom", "attacks": ["apgd-ce", "apgd-t", "square"]}
    for folder, options, name in (("a", chosen, "APGD-CE, APGD-T, Square"), ("b", {"version": "plus"}, "AutoAttack")):
        stage = {"examples": {"test": 200}, "measures": {"robust_loss": {}, "autoattack": options}}
        write(tmp_path / folder / "at-0", "at", protocol=staged(robustness=stage))
        written = report(tmp_path / folder, resamples=20)
        assert f"RErr by {name}, sorted" in written.page.read_text()
        assert f"Fig. 7: RErr ({name}) against RLoss" in (written.folder / "report.md").read_text()


def test_the_words_say_the_contrary(tmp_path):
    said = told(a_study(tmp_path, lambda f: 5 - f))
    assert said[0].startswith("The claim does not hold here, its contrary does")
    assert "for the RErr Spearman 0.72" in said[-1]  # of the paper's own table: scipy says 0.7170
    assert "it disagrees" in said[-1]


def test_within_methods_every_outcome_is_told(tmp_path):
    """Early stopping that makes networks flatter, of a lower loss and a higher error."""
    rng = np.random.default_rng(0)
    for i in range(8):
        for seed in range(2):
            a, b = 0.01 * rng.random(2)
            last, best = network(0.3 + a, 2.0 + i + b, 2.0 + a), network(0.4 + a, 1.0 + i + b, 1.0 + b)
            write(tmp_path / f"m{i}-{seed}", f"m{i}", seed, last=last, best=best)
    (said,) = [text for text in told(tmp_path) if text.startswith("Within methods")]
    assert "flatness and RLoss go together in 8 of 8" in said
    pooled = analyse(gather([tmp_path]), 50).within["", "average_flatness", "rerr_autoattack"]
    assert pooled.spearman.sign == -1
    assert f"{estimate(pooled.spearman)} with RErr" in said


def test_two_networks_of_a_method_are_enough_to_be_pooled_and_seeds_are_told_apart(tmp_path):
    """Early stopping makes networks flatter and lowers their loss; between seeds the flatter one has the higher."""
    for i in range(8):
        for seed in range(2):
            last = network(0.4, 3.0 + i - 0.1 * seed, 2.0 + i + 0.1 * seed)
            write(tmp_path / f"m{i}-{seed}", f"m{i}", seed, last=last, best=network(0.4, 1.0 + i, 1.0 + i))
    write(tmp_path / "one-0", "one", last=network(0.4, 3.0, 2.0))  # has no other seed
    analysed = analyse(gather([tmp_path]), 50)
    key = "average_flatness", "rloss"
    assert (analysed.seeds[key].models, analysed.seeds[key].clusters) == (16, 8)
    assert analysed.seeds[key].spearman == pytest.approx((-1, -1, -1))
    assert analysed.within["", *key].spearman.low > 0
    (said,) = [text for text in told(tmp_path) if text.startswith("Within methods")]
    assert (
        "Between seeds alone (last networks, as differences from their configuration's mean), Spearman −1.00 "
        "[−1.00, −1.00] with RLoss, "
    ) in said
    pairs = analyse(gather([*tmp_path.glob("m*-0")]), 50).within  # a last and an early-stopped network each
    assert pairs.keys() == {("", *key), *((m, f, k) for m, f, k in pairs if not m)}
    assert pairs["", *key].models == 16


def test_early_stopped_networks_are_judged_alone_too(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        for seed in range(2):
            a, b = rng.random(2)
            last = network(0.4, 3.0 + i, 2.0 + i, logit_margin_robust=-i)
            best = network(0.3, 1 + a, 1 + a + b, logit_margin_robust=-a) | {"weights": f"{i} {seed}"}
            write(tmp_path / f"m{i}-{seed}", f"m{i}", seed, last=last, best=best)
    write(tmp_path / "twin-0", "twin", best=best)  # early stopping ended before they parted
    gathered = gather([tmp_path])
    analysis = analyse(gathered, 50)
    result = analysis.early["average_flatness", "rloss"]
    best = {n.networks["best"].value("rloss"): n.networks["best"].value("average_flatness") for n in gathered.runs}
    assert result.spearman.value == pytest.approx(spearmanr([*best], [*best.values()]).statistic)
    assert (result.models, result.clusters) == (16, 8)
    assert analysis.early["logit_margin_robust", "rloss"].spearman.value == pytest.approx(-1)
    (said,) = [text for text in details(analysis, gathered) if text.startswith("Over the early-stopped")]
    assert f"alone (16 networks of 8 configurations), Spearman {estimate(result.spearman)} with RLoss" in said
    assert any(row.startswith("early-stopped,average_flatness,rloss,16,8,") for row in statistics_csv(analysis).split())


def test_checkpoints_of_a_method_are_no_seeds_of_each_other(tmp_path):
    for i in range(8):
        for j in range(2):
            folder = write(tmp_path / f"c{i}-{j}", "x", last=network(0.4, 3.0 + i + j, 2.0 + i - j))
            label = {"name": f"c{i}-{j}", "method": f"m{i}", "early_stopped": False}
            (folder / "checkpoint.json").write_text(json.dumps(label))
    said = " ".join(told(tmp_path, 50))
    assert "16 networks of 8 methods" in said
    assert "configurations" not in said
    assert "seeds alone" not in said
    assert "Within methods" in said
    assert "as differences from each method's mean, Spearman −1.00" in said


def test_one_measure_is_not_called_the_best_of_one(tmp_path):
    for i in range(8):
        write(tmp_path / f"m{i}-0", f"m{i}", last=network(0.4, 1.0 + i, 1.0 + i))
    assert foretold(analyse(gather([tmp_path]), 200)).startswith("On 8 networks, average-case flatness predicts the")


def test_the_same_weights_count_once(tmp_path):
    for seed in range(4):
        last = network(0.4, 2.0 + seed, 1.0 + seed)
        kept = {"weights": "early"} if seed < 2 else {"weights": f"last{seed}"}  # two runs stopped before they parted
        models = {"last": last | {"weights": f"last{seed}"}, "best": network(0.5, 3.0 + seed, 2.0) | kept}
        write(tmp_path / f"at-{seed}", "at", seed, last=models["last"], best=models["best"])
    within = analyse(gather([tmp_path]), 50).within
    assert within["at", "average_flatness", "rloss"].models == 5
    points = [dots.get_offsets() for dots in drawn(tmp_path)["fig7"].figure.axes[0].collections]
    assert sum(len(p) for p in points) == 5


def test_too_few_networks_are_not_called_zero(tmp_path):
    a_study(tmp_path, lambda f: f, methods=10, seeds=1)
    for i in range(4, 10):
        file = next((tmp_path / f"m{i}-0").glob("eval/*/eval.json"))
        results = json.loads(file.read_text())
        results["models"]["last"] |= {"train": {}, "gap": {}}
        file.write_text(json.dumps(results))
    said = " ".join(told(tmp_path))
    assert "the gap of RLoss cannot be judged from 4 networks" in said
    assert "gap of RErr, over 4 networks: too few to say" in said
    assert said.endswith("too few networks here to compare.")


def test_flatness_of_early_stopped_networks_only_is_not_called_unmeasured(tmp_path):
    write(tmp_path / "at-0", "at")
    file = next((tmp_path / "at-0").glob("eval/*/eval.json"))
    results = json.loads(file.read_text())
    results["models"] = {"best": results["models"]["last"]}
    file.write_text(json.dumps(results))
    assert told(tmp_path)[0].startswith("Average-case flatness was measured of no last network that is not rescaled")


def test_few_networks_prove_nothing(tmp_path):
    said = told(a_study(tmp_path, lambda f: f, methods=5))
    assert said[0].startswith("The claim cannot be judged from 15 networks of 5 configurations")


def test_rescaled_networks_are_rows_but_no_evidence(tmp_path):
    a_study(tmp_path, lambda f: f, methods=7, seeds=1)
    scaled = write(tmp_path / "m0-0-x0.5", "m0", last=network(0.4, 9.0, 1.0) | {"rescaled": 0.5})
    (scaled / "eval.json").unlink()
    (scaled / "environment.json").unlink()  # hookflat rescale leaves none
    gathered = gather([tmp_path])
    assert "m0 × 0.5" in [row.title for row in table1(gathered).rows]
    assert analyse(gathered, 100).overall["average_flatness", "rloss"].models == 7
    said = told(tmp_path)
    assert "Rescaled networks (1)" in said[-1]
    page = report(tmp_path, folder=tmp_path / "report", resamples=20).page.read_text()
    assert "environment" not in page[page.index('id="run-m0-0-x0.5"') :].partition("</section>")[0]
    groups = {row.title: row.group for row in table1(gathered).rows}
    assert groups.pop("m0 × 0.5") == ""
    rmtree(scaled)
    assert groups == {row.title: row.group for row in table1(gather([tmp_path])).rows}


def test_the_paper_s_own_correlations_are_scipys(tmp_path):
    from scipy import stats

    write(tmp_path / "at-0", "at")
    analysed = analyse(gather([tmp_path]), 200).paper
    rows = published().values()
    flatness, test = [r["flatness"] for r in rows], [r["rerr_test"] for r in rows]
    gap = [r["rerr_test"] - r["rerr_train"] for r in rows]
    assert analysed["rerr_autoattack"].spearman.value == pytest.approx(stats.spearmanr(flatness, test).statistic)
    assert analysed["rerr_autoattack gap"].kendall.value == pytest.approx(stats.kendalltau(flatness, gap).statistic)


def test_any_measure_of_flatness_is_correlated(tmp_path):
    """A third party's too: whatever is no loss or error."""
    for i in range(8):
        write(
            tmp_path / f"m{i}-0",
            f"m{i}",
            last=network(0.1 * i, i, 8 - i, mine=i**2, broken_by_square=0.1, clean_loss=1),
        )
    analysis = analyse(gather([tmp_path]), 100)
    assert analysis.measures == ["average_flatness", "mine"]
    assert analysis.overall["mine", "rloss"].spearman.value == pytest.approx(1)
    assert analysis.overall["average_flatness", "rloss"].pearson.value == pytest.approx(-1)
    assert sum(analysis.best["rloss"].shares.values()) == pytest.approx(1)


def planted(folder, rng, methods=20):
    """Six measures that know nothing, and "known", which knows RLoss; nothing knows RErr."""
    for i in range(methods):
        for seed in range(2):
            known = 0.1 * i + 0.01 * rng.random()
            others = {f"other_{k}": rng.random() for k in range(6)}
            last = network(
                0.3 + 0.1 * rng.random(), 1 + known + 0.1 * rng.random(), rng.random(), known=known, **others
            )
            last["gap"]["rloss"] = last["test"]["rloss"]
            write(folder / f"m{i}-{seed}", f"m{i}", seed, last=last)
    return folder


def test_a_planted_measure_is_found_and_none_where_there_is_none(tmp_path):
    gathered = gather([planted(tmp_path, np.random.default_rng(5))])
    analysis = analyse(gathered, 2000)
    best = {key: next(r for r in analysis.ranking if r.outcome == key) for key in analysis.outcomes}
    assert best["rloss"].measure == "known"
    assert best["rloss"].prediction.beats_the_baseline
    assert best["rloss gap"].measure == "known"
    of_rerr = [r for r in analysis.ranking if r.outcome == "rerr_autoattack"]
    assert len(of_rerr) == 8
    assert not any(r.prediction.beats_the_baseline for r in of_rerr)
    said = [*verdict(analysis, gathered), *details(analysis, gathered)]
    (told_,) = [text for text in said if text.startswith("Fitted on all of 20 methods but one")]
    assert "the RLoss by known (0.0" in told_
    assert "for the RErr none beats the baseline" in told_
    assert "for the gap of RErr none beats the baseline" in told_
    none = "None of 8 measures predicts the gap of RErr of a method not seen before better than a baseline that knows"
    assert foretold(analysis).startswith(none)
    page = report(tmp_path, folder=tmp_path / "report", resamples=200)
    rows = list(csv.DictReader((page.folder / "ranking.csv").open()))
    assert len(rows) == 8 * 4
    assert {row["measure"] for row in rows if row["beats_the_baseline"] == "True"} == {"known"}


def test_measures_are_ranked_over_the_networks_that_have_them_all(tmp_path):
    """One that half of the methods have is; the others' numbers are then of that half. One of fewer methods is not."""
    rng = np.random.default_rng(3)
    for i in range(12):
        for seed in range(2):
            more = {"half": i % 6 + rng.random()} if i < 6 and seed == 0 else {}
            more |= {"few": rng.random()} if i < 5 else {}
            flatness = i + rng.random() if i < 6 else 12 - i + rng.random()
            write(tmp_path / f"m{i}-{seed}", f"m{i}", seed, last=network(0.4, i + rng.random(), flatness, **more))
    gathered = gather([tmp_path])
    analysis = analyse(gathered, 200)
    ranked = {r.measure: r for r in analysis.ranking if r.outcome == "rloss"}
    assert {name: r.models for name, r in ranked.items()} == {"average_flatness": 6, "half": 6}
    chosen = [r.networks["last"].test for r in gathered.runs if "half" in r.networks["last"].test]
    x, y = ([n[key] for n in chosen] for key in ("average_flatness", "rloss"))
    assert ranked["average_flatness"].spearman.value == pytest.approx(spearmanr(x, y).statistic)
    assert spearmanr(x, [n["half"] for n in chosen]).statistic == 1  # two measures, one ranking
    assert ranked["average_flatness"].rankings == 1
    assert ranked["average_flatness"].prediction == out_of_sample(x, y, range(6), resamples=200)
    assert analysis.overall["average_flatness", "rloss"].models == 24
    assert analysis.overall["average_flatness", "rloss"].spearman.value < ranked["average_flatness"].spearman.value


def test_the_fit_to_training_images_is_a_rival_where_it_is_known(tmp_path):
    """Flatness that is the training loss with noise: it predicts the gap, less well, and says nothing beyond."""
    rng = np.random.default_rng(0)
    for i in range(16):
        train = rng.random()
        last = network(0.5, 2 + 0.1 * rng.random(), 1 - train + 0.2 * rng.normal(), train=train, other=rng.random())
        write(tmp_path / f"m{i}-0", f"m{i}", last=last)
    gathered = gather([tmp_path])
    analysis = analyse(gathered, 2000)
    ranked = {(r.measure, r.outcome): r for r in analysis.ranking}["average_flatness", "rloss gap"]
    last = [run.networks["last"] for run in gathered.runs]
    flat, gap, fit = ([n.value(key) for n in last] for key in ("average_flatness", "rloss gap", "rloss train"))
    alone = out_of_sample(fit, gap, [run.name for run in gathered.runs], resamples=2000)
    assert (ranked.fit.error, *ranked.fit.r2) == pytest.approx((alone.error, *alone.r2))
    assert ranked.beyond == behind(ranked.prediction, ranked.fit, tried=ranked.rankings, resamples=2000)
    assert ranked.spearman.sign == 1
    a, b, c = (rankdata(v) for v in (flat, gap, fit))
    left = [v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b)]
    beyond = analysis.beyond_fit["average_flatness", "rloss gap"]
    assert beyond.value == pytest.approx(pearsonr(*left).statistic)
    assert beyond.sign == 0
    assert ranked.beyond.sign == -1
    assert foretold(analysis).endswith("one that knows the RLoss on training images 7.3 points, which is better.")
    (said,) = [text for text in details(analysis, gathered) if text.startswith("With the RLoss on training images")]
    assert f"{estimate(beyond)} with gap of RLoss (average-case flatness)" in said
    rows = {
        (row["scope"], row["measure"], row["outcome"]): row
        for row in csv.DictReader(statistics_csv(analysis).splitlines())
    }
    assert float(rows["all", "average_flatness", "rloss gap"]["beyond_fit"]) == pytest.approx(
        pearsonr(*left).statistic, abs=1e-4
    )


def test_measures_that_tell_single_changes_alike_are_counted(tmp_path):
    for i, lr in enumerate((0.1, 0.2, 0.3)):
        last = network(0.4, 1.0 + i, 1.0 + i, twin=2.0 + i, other=(i - 1.2) ** 2)
        write(tmp_path / f"at-{lr}", "at", last=last, optimizer__lr=lr)
    said = changes(analyse(gather([tmp_path]), 50))
    assert "the RLoss by average-case flatness and 1 other (1.00, 3 pairs, 1 hyper-parameter);" in said


def test_what_only_seeds_tell_is_not_told_of_methods(tmp_path):
    """Early-stopped networks of which nothing is known on training images say nothing about gaps."""
    rng = np.random.default_rng(0)
    for i in range(8):
        for seed in range(3):
            best = network(0.4, 1.0 + i, 1.0 + rng.random())
            best["gap"] = {}
            last = network(0.4 + 0.1 * rng.random(), 2.0 + i, 2.0 + rng.random(), train=0.1 * rng.random())
            write(tmp_path / f"m{i}-{seed}", f"m{i}", seed, last=last, best=best)
    (said,) = [text for text in told(tmp_path) if text.startswith("Within methods")]
    within, seeds = said.split("Between seeds alone")
    assert "with RErr" in within
    assert "with gap of RErr" not in within
    assert "with gap of RErr" in seeds


def test_a_measure_as_good_as_the_best_is_said_to_be(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        knows = i + 0.1 * rng.random()
        last = network(0.4, float(i), rng.random(), first=knows, second=knows + 0.1 * rng.random())
        write(tmp_path / f"m{i}-0", f"m{i}", last=last)
    analysis = analyse(gather([tmp_path]), 500)
    assert foretold(analysis).endswith("1 other cannot be told from it.")
    behind = {r.measure: r.behind for r in analysis.ranking if r.outcome == "rloss"}
    best = next(iter(behind))
    assert best in ("first", "second")
    assert behind.pop(best) is None
    assert behind.pop("second" if best == "first" else "first").high >= 0
    assert behind["average_flatness"].high < 0


def test_the_best_is_one_that_beats_the_baseline_though_another_has_the_larger_r2(tmp_path):
    rng = np.random.default_rng(10)
    y = rng.normal(size=8)
    loose, tight = (y + 0.8 * rng.normal(size=8) for _ in range(2))
    for i in range(8):
        last = network(0.4, y[i], 1.0, loose=loose[i], tight=tight[i])
        write(tmp_path / f"m{i}-0", f"m{i}", last=last)
    first, second, *_ = (r for r in analyse(gather([tmp_path]), 300).ranking if r.outcome == "rloss")
    assert (first.measure, second.measure) == ("tight", "loose")
    assert first.prediction.r2.value < second.prediction.r2.value
    assert (first.prediction.beats_the_baseline, second.prediction.beats_the_baseline) == (True, False)
    assert second.behind.value > 0


def test_what_a_partial_correlation_holds_fixed(tmp_path):
    """Confidence that is all there is to a measure leaves nothing of it; the learning rate where it varies."""
    rng = np.random.default_rng(0)
    for i in range(30):
        confidence = rng.random()
        last = network(0.4, 1 + confidence + 0.3 * rng.random(), 1.0, clean=0.05 + 0.01 * rng.random())
        last["test"] |= {"confidence_robust": confidence, "mine": confidence + 0.3 * rng.random()}
        write(tmp_path / f"m{i}-0", f"m{i}", last=last, optimizer__lr=0.1 * (1 + i % 3))
    ranked = {r.measure: r for r in analyse(gather([tmp_path]), 200).ranking if r.outcome == "rloss"}
    assert ranked["mine"].fixed == ("clean error", "confidence", "learning rate")
    assert ranked["mine"].partial.sign == 0
    assert ranked["confidence_robust"].fixed == ("clean error", "learning rate")
    assert ranked["confidence_robust"].partial.sign == 1
    last = [run.networks["last"].test for run in gather([tmp_path]).runs]
    assert spearmanr([n["mine"] for n in last], [n["rloss"] for n in last]).pvalue < 1e-3


def test_the_learning_rate_held_fixed_is_the_peak_where_a_schedule_has_one(tmp_path):
    """`cyclic` trains at its own, whatever the optimizer says."""
    write(tmp_path / "at-0", "at", shipped=True)
    write(tmp_path / "cyclic-0", "cyclic", shipped=True)
    alone = controls(gather([tmp_path]), "clean_error")
    assert "learning rate" not in alone  # where one configuration differs it says which one that is
    write(tmp_path / "cyclic-1", "cyclic", shipped=True, schedule__peak=0.3)
    gathered = gather([tmp_path])
    rate = controls(gathered, "clean_error")["learning rate"]
    rates = {run.name: rate(run, run.networks["last"]) for run in gathered.runs}
    assert rates == {"at-0": 0.05, "cyclic-0": 0.2, "cyclic-1": 0.3}


def test_early_stopping_and_options_are_single_changes(tmp_path):
    for seed in range(2):
        for xi, flat in ((0.1, 1.0), (0.2, 2.0)):
            last, best = network(0.4, 1 + flat, flat), network(0.4, 0.5 + flat, flat - 0.5)
            write(tmp_path / f"at-{xi}-{seed}", "at", seed, last=last, best=best, loss__xi=xi)
    ranked = {r.measure: r for r in analyse(gather([tmp_path]), 50).ranking if r.outcome == "rloss"}
    assert ranked["average_flatness"].granulated.psi == {"loss.xi": 1.0, "early stopping": 1.0}


def test_a_measure_that_falls_where_the_outcome_rises_follows_single_changes_as_well(tmp_path):
    """A margin of Psi -1 on both hyper-parameters, beside noise."""
    rng = np.random.default_rng(0)
    for i, lr in enumerate((0.1, 0.2, 0.3)):
        for j, xi in enumerate((0.1, 0.2, 0.3)):
            last = network(0.4, 1.0 + i + j, rng.random(), margin=-(i + j) + 0.01 * i, noise=rng.random())
            write(tmp_path / f"at-{lr}-{xi}", "at", last=last, optimizer__lr=lr, loss__xi=xi)
    said = " ".join(told(tmp_path, 50))
    assert "told best (|Psi|): the RLoss by margin (−1.00, 18 pairs, 2 hyper-parameters);" in said


def test_columns_that_a_ranking_has_not_are_not_explained(tmp_path):
    for i in range(3):
        write(tmp_path / f"m{i}-0", f"m{i}", last=network(0.1 + i / 10, 1.0 + i / 3, 0.5 + i / 7))
    analysis = analyse(gather([tmp_path]), 50)
    heads, _ = without_empty(*ranking_lines(analysis))
    said = about_ranking(analysis)
    words = {
        "Off by:": "off by",
        "Behind the best:": "behind the best",
        "Psi:": "Psi",
        "Beyond the fit:": "beyond the fit",
    }
    assert {word: word in said for word in words} == {word: head in heads for word, head in words.items()}
    assert "Psi:" not in said
    assert "All over the same networks" in said
