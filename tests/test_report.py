"""Reports: the table, the figures, the words and the page, from folders with every kind of trouble in them."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pyarrow import parquet
from test_cli import fails, hookflat

from hookflat import UserError, report
from hookflat.recipe.loading import load
from hookflat.reporting.analysis import analyse
from hookflat.reporting.drawings import drawings
from hookflat.reporting.gathering import gather
from hookflat.reporting.labels import label
from hookflat.reporting.table import Cell, published, split, table1
from hookflat.reporting.words import protocol_lines, verdict

STAGES = {"robustness": {"examples": {"test": 200, "train": 100}, "measures": {"robust_loss": {"steps": 20}}}}
PROTOCOL = {"eps": 0.15, "step_size": 0.0335, "batch_size": 250, "seed": 0, "stages": STAGES}


def network(rerr, rloss, flatness, *, train=0.1, clean=0.05, **more):
    test = {"clean_error": clean, "rloss": rloss, "rerr_autoattack": rerr, "average_flatness": flatness} | more
    return {
        "epoch": 10,
        "seconds": {"test/robust_loss": 6.0},
        "test": test | {"average_flatness_stderr": 0.01},
        "train": {"rloss": train, "rerr_autoattack": train},
        "gap": {"rloss": rloss - train, "rerr_autoattack": rerr - train},
    }


def write(folder, method, seed=0, *, last=None, best=None, protocol=PROTOCOL, shipped=False, **options):
    """A run as `hookflat run` and `hookflat eval` leave it; `shipped`: with the tables of the recipe of its name."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    recipe = {"run": {"epochs": 10}, "data": {"name": "digits"}, "loss": {"name": "at"}}
    recipe = load(method).tables if shipped else recipe
    recipe["run"]["seed"] = seed
    for key, value in options.items():
        table, _, name = key.partition("__")
        recipe.setdefault(table, {})[name] = value
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (folder / "environment.json").write_text(json.dumps({"command": ["hookflat", "run"], "packages": {"timm": None}}))
    own = {
        "recipe": method,
        "seconds": {"training": 90.0},
        "protocol": PROTOCOL | {"stages": {}},
        "models": {"last": {}},
    }
    (folder / "eval.json").write_text(json.dumps(own))
    models = {"last": last or network(0.4, 2.0, 1.0)} | ({"best": best} if best else {})
    return measured(folder, models, protocol=protocol)


def measured(folder, models, evaluation="digits-last-best", protocol=PROTOCOL, **more):
    (folder / "eval" / evaluation).mkdir(parents=True)
    results = {"recipe": folder.name, "classes": 10, "protocol": protocol, "models": models, "model": str(folder)}
    (folder / "eval" / evaluation / "eval.json").write_text(json.dumps(results | more))
    return folder


def staged(**stages):
    """PROTOCOL with other stages."""
    return PROTOCOL | {"stages": stages}


def records(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def a_study(folder, relation, methods=12, seeds=3, noise=0.05):
    """Methods whose RLoss is `relation` of their flatness."""
    rng = np.random.default_rng(0)
    for i in range(methods):
        for seed in range(seeds):
            flatness = 0.5 + 0.2 * i + 0.02 * rng.normal()
            rloss = relation(flatness) + noise * rng.normal()
            other = {"worst_flatness": 0.01 * rng.random()}
            last = network(0.2 + 0.1 * rloss, rloss, flatness, clean=0.05 + 0.01 * rng.random(), **other)
            best = network(0.2, 0.5 * rloss, 0.5 * flatness, clean=0.05)
            write(folder / f"m{i}-{seed}", f"m{i}", seed, last=last, best=best)
    return folder


# The table


def test_the_paper_s_numbers_give_the_paper_s_table(tmp_path):
    """Its rows in its order, its groups (6 good, 8 average, 5 poor), its gaps and differences beside equal ones."""
    for name, row in published().items():
        last = network(row["rerr_test"] / 100, 2.0, row["flatness"], train=row["rerr_train"] / 100)
        best = network(row["rerr_test_early_stop"] / 100, 1.0, 0.1)
        write(tmp_path / f"{name}-0", name, last=last, best=best, shipped=True)
    table = table1(gather([tmp_path]))
    methods = [str(row["method"]) for row in published().values()]
    ties = {"MiSH", "Late multi-step"}, {"SiLU", "Weight averaging"}
    mine = [row.title for row in table.rows]
    assert [m for m in mine if not any(m in t for t in ties)] == [m for m in methods if not any(m in t for t in ties)]
    assert [row.group for row in table.rows] == ["good"] * 6 + ["average"] * 8 + ["poor"] * 5
    for row in table.rows:
        for key in ("rerr", "rerr_train", "gap", "average_flatness", "early", "difference"):
            assert row.cells[key].mean == pytest.approx(row.paper[key], abs=1e-9)
    baseline = table.rows[-1]
    assert (baseline.title, baseline.paper["gap"]) == ("AT (baseline)", pytest.approx(62.8 - 10.7))
    heads, lines = table.texts()
    assert lines[-1][heads.index("RErr gap")] == lines[-1][heads.index("paper: RErr gap")] == "+52.1"
    assert lines[-1][heads.index("early − last")] == "−8.2"


def test_the_paper_s_numbers_stand_beside_recipes_as_they_ship_only(tmp_path):
    write(tmp_path / "trades-0", "trades", shipped=True)
    write(tmp_path / "at-0", "at", shipped=True, attack__steps=14)
    write(tmp_path / "mart-0", "mart", shipped=True, loss__beta=1.0)
    write(tmp_path / "mart-1", "mart", 1, shipped=True)
    papers = {row.configuration.key: bool(row.paper) for row in table1(gather([tmp_path])).rows}
    assert papers == {
        "trades": True,
        "at": False,
        "mart beta=1": False,
        f"mart beta={load('mart').tables['loss']['beta']:g}": True,
    }


def test_means_and_deviations_over_seeds(tmp_path):
    values = [0.41, 0.45, 0.46]
    for seed, value in enumerate(values):
        write(tmp_path / f"mine-{seed}", "mine", seed, last=network(value, 2.0, 1.0))
    (row,) = table1(gather([tmp_path])).rows
    assert row.cells["rerr"].mean == pytest.approx(100 * np.mean(values))
    assert row.cells["rerr"].std == pytest.approx(100 * np.std(values, ddof=1))
    assert row.cells["rerr"].text(1) == "44.0 ± 2.6"
    assert (row.title, row.paper) == ("mine", {})
    assert (Cell((2.0,)).text(2), Cell().text(2), Cell((-1.0,)).text(1, signed=True)) == ("2.00", "", "−1.0")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_groups_are_cut_at_the_percentiles(errors):
    groups = split(errors)
    low, high = np.percentile(errors, [30, 70])
    assert all(
        (e <= low) == (g == "good") and (e > high and e > low) == (g == "poor")
        for e, g in zip(errors, groups, strict=True)
    )


def test_hyper_parameters_make_rows_and_seeds_do_not(tmp_path):
    for beta in (1.0, 3.0, 6.0):
        for seed in (0, 1):
            write(tmp_path / f"trades-beta={beta:g}-{seed}", "trades", seed, loss__beta=beta, run__threads=seed + 1)
    write(tmp_path / "at-0", "at")
    rows = table1(gather([tmp_path])).rows
    assert sorted(row.title for row in rows) == ["AT (baseline)", "TRADES, beta 1", "TRADES, beta 3", "TRADES, beta 6"]
    assert {len(row.configuration.runs) for row in rows if row.title != "AT (baseline)"} == {2}


def test_csv_latex_and_markdown_say_the_same(tmp_path):
    a_study(tmp_path, lambda f: 1 + f, methods=7, seeds=2)
    written = report(tmp_path, resamples=50)
    rows = list(csv.DictReader((written.folder / "table1.csv").open()))
    assert [r["method"] for r in rows] == [row.title for row in written.table.rows]
    for r, row in zip(rows, written.table.rows, strict=True):
        assert float(r["rloss_mean"]) == pytest.approx(row.cells["rloss"].mean, rel=1e-5)
    latex = (written.folder / "table1.tex").read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    columns = len(re.search(r"\\begin{tabular}{(.*)}", latex)[1])
    assert {line.count(" & ") + 1 for line in body} == {columns}
    assert len(body) == 8
    assert latex.count(r"\midrule") == 3  # below the headings, and between three groups
    assert "±" not in latex
    assert "−" not in latex
    first = written.table.rows[0]
    page = (written.folder / "report.md").read_text()
    assert f"| {first.title} | {first.cells['rerr'].text(1)} |" in page
    models = list(csv.DictReader((written.folder / "models.csv").open()))
    assert len(models) == 7 * 2 * 2
    assert {m["network"] for m in models} == {"last", "best"}


# What is left out


def test_what_is_left_out_is_named_with_the_reason(tmp_path):
    good = write(tmp_path / "at-0", "at")
    write(tmp_path / "trades-0~1", "trades")
    more = staged(robustness=STAGES["robustness"] | {"examples": {"test": 500, "train": 100}})
    write(tmp_path / "mart-0", "mart", protocol=more)
    write(tmp_path / "gelu-0", "gelu", data__name="images", data__path="elsewhere")
    write(tmp_path / "mish-0", "mish", last=network(0.4, 2.0, math.nan))
    (tmp_path / "begun-0" / "checkpoints" / "step-000000006-epoch-000003").mkdir(parents=True)
    (tmp_path / "begun-0" / "recipe.toml").write_text("[run]\nseed = 0\n")
    (tmp_path / "begun-0.log").write_text("epoch 3\nhookflat: out of memory\n")
    (tmp_path / "never-0.log").write_text("hookflat: no data\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "slurm").mkdir()  # a study's own
    write(tmp_path / "pseudo_labels" / "dd66", "standard")
    write(tmp_path / "torn-0", "torn")
    (tmp_path / "torn-0" / "eval" / "digits-last-best" / "eval.json").write_text('{"recipe": "torn-0", "mod')
    write(tmp_path / "strange-0", "strange")
    (tmp_path / "strange-0" / "eval" / "digits-last-best" / "eval.json").write_text('{"recipe": 3, "models": []}')
    write(tmp_path / "odd-0", "odd")
    (tmp_path / "odd-0" / "environment.json").write_text("[]")
    write(tmp_path / "bent-0", "bent")
    (tmp_path / "bent-0" / "recipe.toml").write_text("[run\n")
    write(tmp_path / "unmeasured-0", "unmeasured")
    (tmp_path / "unmeasured-0" / "eval" / "digits-last-best" / "eval.json").unlink()
    records(tmp_path / "unmeasured-0", [{"epoch": 1}])
    written = report(tmp_path, resamples=50)
    why = dict(written.left_out)
    assert sorted(row.configuration.method for row in written.table.rows) == ["at", "mish"]
    assert why.pop("trades-0~1") == "an older run, moved aside by --redo"
    assert why.pop("mart-0") == "measured otherwise: robustness.examples.test is 500, 200 for the others"
    assert why.pop("gelu-0") == "measured otherwise: data.name is images, digits for the others"
    assert why.pop("mish-0, last test average_flatness") == "not a finite number"
    assert why.pop("begun-0") == "not finished: at epoch 3; its log ends: hookflat: out of memory"
    assert why.pop("never-0") == "never begun; its log ends: hookflat: no data"
    assert why.pop("notes") == "no run: it has neither recipe.toml nor eval.json"
    assert why.pop("pseudo_labels") == "no run, but a folder of runs: name it as well to include them"
    assert "eval.json cannot be read: " in why.pop("torn-0")
    assert "eval/digits-last-best/eval.json is not what hookflat writes" in why.pop("strange-0")
    assert "recipe.toml cannot be read: " in why.pop("bent-0")
    assert why.pop("odd-0") == "environment.json is not what hookflat writes"
    assert why.pop("unmeasured-0") == "trained, but not measured"
    assert not why
    page = (written.folder / "report.html").read_text()
    for name, reason in written.left_out:
        assert name in page
        assert reason.split(":")[0] in page
    assert good.exists()


def test_a_report_is_not_taken_for_a_run(tmp_path):
    write(tmp_path / "at-0", "at")
    assert report(tmp_path, resamples=50).left_out == []
    assert report(tmp_path, folder=tmp_path / "again", resamples=50).left_out == []
    assert report(tmp_path, resamples=50).left_out == []


def test_networks_trained_elsewhere_are_rows_and_triangles(tmp_path):
    """A folder of `hookflat eval` on a checkpoint, measured as the runs are."""
    write(tmp_path / "at-0", "at")
    foreign = write(tmp_path / "Carmon2019-digits", "x", last=network(0.3, 1.5, 0.4))
    results = json.loads((foreign / "eval" / "digits-last-best" / "eval.json").read_text())
    (foreign / "eval.json").write_text(
        json.dumps(results | {"model": "robustbench:Carmon2019", "recipe": "Carmon2019"})
    )
    rmtree(foreign / "eval")
    runs = {run.method: run for run in gather([tmp_path]).runs}
    assert (runs["at"].trained_here, runs["Carmon2019"].trained_here) == (True, False)
    assert drawn(tmp_path)["fig1"].caption.endswith("Triangles: networks trained elsewhere.")


def test_names_from_two_folders_are_told_apart(tmp_path):
    write(tmp_path / "a" / "at-0", "at")
    write(tmp_path / "b" / "at-0", "at", loss__beta=1.0)
    write(tmp_path / "c" / "b" / "at-0", "at", loss__beta=2.0)
    gathered = gather([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "at-0", tmp_path / "c" / "b"])
    assert sorted(run.name for run in gathered.runs) == ["a/at-0", "c/b/at-0", f"{tmp_path.name}/b/at-0"]


HESSIAN = {"curvature": {"examples": {"test": 5}, "measures": {"hessian": {}}}}


def test_the_protocol_of_most_runs_is_used_and_another_can_be_named(tmp_path):
    for i in range(3):
        run = write(tmp_path / f"at-{i}", "at", i, last=network(0.4, 2.0, 1.0))
        if i < 2:
            other = network(0.3, 1.5, 0.7, hessian_robust_max=10.0 + i)
            measured(run, {"last": other}, "hessian-last", staged(**HESSIAN))
    gathered = gather([tmp_path])
    last = [run.networks["last"] for run in gathered.runs]
    assert [n.test["rloss"] for n in last] == [2.0] * 3  # of the protocol that measured all
    assert [n.test.get("hessian_robust_max") for n in last] == [10.0, 11.0, None]  # what only the other measured
    assert all(n.gap["rloss"] == n.test["rloss"] - n.train["rloss"] for n in last)
    assert [(e.name, names) for e, names in gathered.others] == [("hessian-last", ["hessian_robust_max"])]
    assert any(line.startswith("from hessian-last: hessian_robust_max; ") for line in protocol_lines(gathered, "PGD"))
    named = gather([tmp_path], protocol="hessian")
    assert [run.networks["last"].test["rloss"] for run in named.runs] == [1.5] * 2
    assert [name for name, _ in named.left_out] == ["at-2"]
    with pytest.raises(
        UserError, match="--protocol dig: no run was measured by it, only by digits-last-best, hessian-last"
    ):
        gather([tmp_path], protocol="dig")


def test_measures_of_another_radius_or_other_options_are_not_mixed(tmp_path):
    for i, (eps, xi) in enumerate(((0.15, 0.001), (0.15, 0.001), (0.15, 0.005), (0.3, 0.001))):
        run = write(tmp_path / f"at-{i}", "at", i)
        stage = {"worst": {"examples": {"test": 200}, "measures": {"worst_flatness": {"xi": xi}}}}
        more = {"last": {"test": {"worst_flatness": xi}}}
        measured(run, more, "worst-last", staged(**stage) | {"eps": eps})
    runs = gather([tmp_path]).runs
    assert [run.networks["last"].test.get("worst_flatness") for run in runs] == [0.001, 0.001, None, None]


def test_networks_measured_by_separate_commands_are_one_run_s(tmp_path):
    run = write(tmp_path / "at-0", "at")
    rmtree(run / "eval")
    measured(run, {"last": network(0.4, 2.0, 1.0)}, "digits-last")
    measured(run, {"best": network(0.3, 1.0, 0.5)}, "digits-best")
    (run_,) = gather([tmp_path]).runs
    assert {label: n.test["rloss"] for label, n in run_.networks.items()} == {"last": 2.0, "best": 1.0}


def test_measures_that_redo_moved_aside_are_not_read(tmp_path):
    run = write(tmp_path / "at-0", "at")
    measured(run, {"last": network(0.9, 9.0, 9.0)}, "digits-last-best~1")
    gathered = gather([tmp_path])
    assert gathered.runs[0].networks["last"].test["rloss"] == 2.0
    assert gathered.left_out == [("at-0/eval/digits-last-best~1", "older measures, moved aside by --redo")]


def test_other_examples_are_other_numbers(tmp_path):
    """Also training ones; but a training set that is smaller than the protocol asks for is all there is."""
    for i in range(3):
        write(tmp_path / f"at-{i}", "at", i, data__test=700)
    write(
        tmp_path / "more-0",
        "more",
        protocol=staged(robustness=STAGES["robustness"] | {"examples": {"test": 200, "train": 1000}}),
    )
    write(tmp_path / "test-0", "test", data__test=300)
    few = staged(robustness=STAGES["robustness"] | {"examples": {"test": 200, "train": 50}})
    run = write(tmp_path / "few-0", "few", protocol=few, data__train=50, data__test=700)
    recipe = {"data": {"name": "digits", "train": 50, "test": 700}, "eval": {"robustness": {"examples": 200}}}
    (run / "eval" / "digits-last-best" / "recipe.toml").write_text(tomli_w.dumps(recipe))
    why = dict(gather([tmp_path]).left_out)
    assert why.keys() == {"more-0", "test-0", "few-0"}
    assert why["test-0"] == "measured otherwise: data.test is 300, 700 for the others"
    for folder in tmp_path.glob("at-*"):  # asked for 200 of each, too
        recipe["data"]["train"] = 384
        (folder / "eval" / "digits-last-best" / "recipe.toml").write_text(tomli_w.dumps(recipe))
    assert dict(gather([tmp_path]).left_out).keys() == {"more-0", "test-0"}


def test_a_training_counts_once(tmp_path):
    """Of two studies with the same recipe and seed, and evaluated a second time as a checkpoint."""
    for study in ("table1", "grid"):
        for seed in (0, 1):
            write(tmp_path / study / f"trades-{seed}", "trades", seed, eval__eps=0.1 * seed)
            (tmp_path / study / f"trades-{seed}.log").write_text("done\n")
    same = network(0.4, 2.0, 1.0) | {"weights": "abc"}
    write(tmp_path / "table1" / "at-0", "at", last=same)
    copy = write(tmp_path / "again", "at-0", last=same)
    (copy / "eval.json").write_text((copy / "eval" / "digits-last-best" / "eval.json").read_text())
    rmtree(copy / "eval")
    gathered = gather([tmp_path / "table1", tmp_path / "grid", copy])
    assert sorted((c.method, len(c.runs)) for c in gathered.configurations) == [("at", 1), ("trades", 2)]
    assert sorted(gathered.left_out) == [
        ("again", "the same network as at-0"),
        ("grid/trades-0", "the same network as table1/trades-0"),
        ("grid/trades-1", "the same network as table1/trades-1"),
    ]


def test_of_a_training_that_is_there_twice_the_more_measured_one_is_kept(tmp_path):
    write(tmp_path / "a" / "at-0", "at")
    write(tmp_path / "b" / "at-0", "at", best=network(0.5, 1.0, 1.0))
    assert gather([tmp_path / "a", tmp_path / "b"]).left_out == [("a/at-0", "the same network as b/at-0")]


def test_an_option_younger_than_a_recipe_makes_no_configuration(tmp_path):
    write(tmp_path / "at-0", "at", 0, loss__name="at")
    write(tmp_path / "at-1", "at", 1, loss__name="at", loss__new=3)
    write(tmp_path / "at-2", "at", 2, loss__name="at", awp__xi=0.01)  # a plugin that the others lack
    assert [len(c.runs) for c in gather([tmp_path]).configurations] == [2, 1]


def test_trouble_in_one_folder_is_that_folder_s(tmp_path):
    write(tmp_path / "at-0", "at")
    write(tmp_path / "text-0", "text")
    (tmp_path / "text-0" / "recipe.toml").write_text('run = "x"\n')
    write(tmp_path / "dir-0", "dir")
    (tmp_path / "dir-0" / "metrics.jsonl").mkdir()
    records(write(tmp_path / "null-0", "null"), [{"epoch": None}, {"epoch": 1, "split": "test", "rloss": None}, [], {}])
    write(tmp_path / "none-0", "none", last=network(0.4, 2.0, 1.0, third=None))
    written = report(tmp_path, resamples=20)
    why = dict(written.left_out)
    assert {row.title for row in written.table.rows} == {"at", "null", "none"} - {"at"} | {"AT (baseline)"}
    assert why["text-0"].startswith("recipe.toml is no recipe")
    assert why["dir-0"].startswith("cannot be read")
    assert why["none-0, last test third"] == "not a finite number"


def test_several_radii(tmp_path):
    """average_flatness_xi0.5 is the paper's."""
    for i in range(7):
        last = network(0.3 + 0.01 * i, 1 + i, 0)
        del last["test"]["average_flatness"]
        last["test"] |= {"average_flatness_xi0.25": 0.1, "average_flatness_xi0.5": 0.3 * i}
        write(tmp_path / f"m{i}-0", f"m{i}", last=last)
    gathered = gather([tmp_path])
    assert table1(gathered).average == "average_flatness_xi0.5"
    assert told(tmp_path)[0].startswith("The claim holds here")
    assert drawn(tmp_path)["fig1"].figure.axes[0].get_xlabel().startswith("average-case flatness at xi = 0.5 in RLoss")


def test_nothing_to_report_on(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a folder" in fails(2, "report", tmp_path / "none")
    assert "no run that is trained and measured" in fails(2, "report", tmp_path / "empty")
    (tmp_path / "empty" / "x").mkdir()
    assert "x: no run: it has neither" in fails(2, "report", tmp_path / "empty")


# The words


def told(folder, resamples=500):
    gathered = gather([folder])
    return verdict(analyse(gathered, "rerr_autoattack", resamples), gathered)


def test_the_words_say_yes_where_the_claim_holds(tmp_path):
    said = told(a_study(tmp_path, lambda f: 0.5 + 0.8 * f))
    assert said[0].startswith("The claim holds here: networks in flatter places have the lower robust loss. A very")
    assert "over 36 networks of 12 configurations" in said[0]
    said = " ".join(said)
    assert "the correlation with RLoss stays" in said
    assert (
        "go together in 12 of 12; as differences from each method's mean, Spearman" in said
    )  # three seeds tell little
    assert "RLoss, over 36 networks: average-case flatness" in said
    assert "(Spearman" in said


def test_a_few_runs_of_a_method_give_no_interval(tmp_path):
    gathered = gather([a_study(tmp_path, lambda f: 0.5 + 0.8 * f)])
    within = analyse(gathered, "rerr_autoattack", 100).within
    of_one, of_all = (within[method, "average_flatness", "rloss"] for method in ("m3", ""))
    assert (of_one.models, of_one.clusters, math.isnan(of_one.spearman.low)) == (6, 3, True)
    assert (of_all.models, of_all.clusters, of_all.spearman.sign) == (72, 12, 1)


def test_the_words_say_no_where_there_is_nothing(tmp_path):
    rng = np.random.default_rng(1)
    said = told(a_study(tmp_path, lambda f: 2 + rng.normal(), seeds=1))
    assert said[0].startswith("The claim is not supported here")
    assert "the interval of Spearman's includes zero" in said[0]


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
    assert "for the RErr Spearman 0.72" in said[-1]  # of the paper's own table: scipy says 0.7211
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
    assert said.endswith("So within methods the flatter networks have the higher RErr and gap of RErr.")


def test_the_same_weights_count_once(tmp_path):
    for seed in range(4):
        last = network(0.4, 2.0 + seed, 1.0 + seed)
        kept = {"weights": "early"} if seed < 2 else {"weights": f"last{seed}"}  # two runs stopped before they parted
        models = {"last": last | {"weights": f"last{seed}"}, "best": network(0.5, 3.0 + seed, 2.0) | kept}
        write(tmp_path / f"at-{seed}", "at", seed, last=models["last"], best=models["best"])
    within = analyse(gather([tmp_path]), "rerr_autoattack", 50).within
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
    assert analyse(gathered, "rerr_autoattack", 100).overall["average_flatness", "rloss"].models == 7
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
    found = analyse(gather([tmp_path]), "rerr_autoattack", 200).paper
    rows = published().values()
    flatness, test = [r["flatness"] for r in rows], [r["rerr_test"] for r in rows]
    gap = [r["rerr_test"] - r["rerr_train"] for r in rows]
    assert found["rerr_autoattack"].spearman.value == pytest.approx(stats.spearmanr(flatness, test).statistic)
    assert found["rerr_autoattack gap"].kendall.value == pytest.approx(stats.kendalltau(flatness, gap).statistic)


def test_any_measure_of_flatness_is_correlated(tmp_path):
    """A third party's too: whatever is no loss or error."""
    for i in range(8):
        write(
            tmp_path / f"m{i}-0",
            f"m{i}",
            last=network(0.1 * i, i, 8 - i, mine=i**2, broken_by_square=0.1, clean_loss=1),
        )
    analysis = analyse(gather([tmp_path]), "rerr_autoattack", 100)
    assert analysis.measures == ["average_flatness", "mine"]
    assert analysis.overall["mine", "rloss"].spearman.value == pytest.approx(1)
    assert analysis.overall["average_flatness", "rloss"].pearson.value == pytest.approx(-1)
    assert sum(analysis.best["rloss"].shares.values()) == pytest.approx(1)


# The figures


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 24), st.floats(0.02, 0.4))
def test_labels_lie_on_no_other_label_and_inside_the_axes(seed, count, spread):
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(7.2, 5.0), dpi=100)
    axes = figure.subplots()
    centres = rng.random((3, 2))
    points = [tuple(centres[i % 3] + spread * rng.normal(size=2)) for i in range(count)]
    axes.scatter(*zip(*points, strict=True))
    axes.margins(0.12)
    boxes = label(figure, axes, points, [f"method {'x' * (i % 7)}{i}" for i in range(count)])
    inside = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[:i])


def test_a_line_leads_to_a_point_that_a_label_does_not_stand_beside_alone():
    figure = Figure(figsize=(7.2, 5.0), dpi=100)
    axes = figure.subplots()
    points = [(0.1, 0.1), (0.5, 0.5), (0.505, 0.505), (0.9, 0.9)]
    axes.scatter(*zip(*points, strict=True))
    label(figure, axes, points, ["alone", "near", "nearer", "far"])
    assert sorted(tuple(np.round(line.get_xydata()[0], 3)) for line in axes.lines) == [(0.5, 0.5), (0.505, 0.505)]


def drawn(folder):
    gathered = gather([folder])
    table = table1(gathered)
    return {d.name: d for d in drawings(gathered, table)}


def test_every_figure_is_drawn_or_says_what_is_missing(tmp_path):
    write(tmp_path / "at-0", "at")
    bare = drawn(tmp_path)
    assert [name for name, d in bare.items() if d.figure] == ["fig1", "fig1_gap", "fig7"]
    assert bare["fig4"].caption == "No run has landscapes: hookflat eval RUN --protocol landscapes."
    for i, xi in enumerate((0.001, 0.005, 0.01)):
        last = network(0.4, 3 - i, 2 - 0.5 * i, worst_flatness=0.01)
        run = write(tmp_path / f"at_awp-xi={xi}-0", "at_awp", last=last, awp__xi=xi)
        (run / "eval" / "landscapes-last" / "tables").mkdir(parents=True)
        t = [-1.0, 0.0, 1.0]
        columns = {"t": t, "rloss_0": [5.0, 1.0, 5.0], "rloss_1": [3.0, 1.0, 7.0], "rerr_0": [1.0, 0.25, 1.0]}
        place = run / "eval" / "landscapes-last" / "tables" / "last-test-landscape_layer.parquet"
        parquet.write_table(pa.table(columns), place)
        through = [
            {"epoch": e, "stage": "curves", "split": split, "rloss": e / (1 + (split == "train")), "rerr_pgd": 0.1 * e}
            for e in range(1, 11)
            for split in ("train", "test")
        ]
        snapshots = [
            {"epoch": e, "stage": "snap", "split": "test", "rloss": e, "average_flatness": 0.1 * e} for e in (5, 10)
        ]
        records(run, [*through, *snapshots])
    full = drawn(tmp_path)
    assert all(d.figure for d in full.values())
    lines = {line.get_label(): line for line in full["fig4"].figure.axes[0].get_lines()}
    assert list(lines["AT-AWP, xi 0.001 (40.0 %)"].get_ydata()) == [4.0, 1.0, 6.0]  # the mean of two directions
    curves = {line.get_label(): list(line.get_ydata()) for line in full["fig2"].figure.axes[0].get_lines()}
    assert curves["test"] == list(range(1, 11))
    assert curves["train"] == [e / 2 for e in range(1, 11)]
    assert [text.get_text() for text in full["fig6"].figure.axes[0].get_legend().get_texts()] == [
        "AT-AWP, xi 0.001 to 0.01"
    ]


def test_landscapes_of_other_data_are_not_averaged(tmp_path):
    t = [-1.0, 0.0, 1.0]
    for i, name in enumerate(("digits", "digits", "other")):
        run = write(tmp_path / f"at-{i}", "at", i, data__name=name)
        (run / "eval" / "digits-last-best" / "tables").mkdir()
        columns = {"t": t, "rloss_0": [3.0 + i, 1.0, 3.0], "rerr_0": [1.0, 0.25, 1.0]}
        parquet.write_table(pa.table(columns), run / "eval/digits-last-best/tables/last-test-landscape_layer.parquet")
        results = json.loads((run / "eval" / "digits-last-best" / "eval.json").read_text())
        results["protocol"]["stages"]["robustness"]["measures"]["landscape"] = {"points": 3}
        (run / "eval" / "digits-last-best" / "eval.json").write_text(json.dumps(results))
    (line,) = drawn(tmp_path)["fig4"].figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [3.5, 1.0, 3.0]
    why = gather([tmp_path]).left_out
    assert ("at-2, its landscape", "measured otherwise than the other landscapes") in why


def test_the_kink_lies_at_log_k_between_two_lines(tmp_path):
    x = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    y = [0.3, 0.41, 0.5, 0.6, 0.62, 0.63]
    for i, (rloss, rerr) in enumerate(zip(x, y, strict=True)):
        write(tmp_path / f"m{i}-0", f"m{i}", last=network(rerr, rloss, 1.0))
    axes = drawn(tmp_path)["fig7"].figure.axes[0]
    kink, below, above = axes.get_lines()
    assert kink.get_xdata()[0] == pytest.approx(math.log(10))
    for found, part in ((below, slice(0, 3)), (above, slice(3, 6))):
        slope, intercept = np.polyfit(x[part], 100 * np.array(y[part]), 1)
        assert found.get_ydata() == pytest.approx([intercept + slope * e for e in (min(x[part]), max(x[part]))])


def test_a_method_stands_for_its_hyper_parameters_by_its_best(tmp_path):
    for beta, rerr in ((1.0, 0.5), (6.0, 0.3), (9.0, 0.4)):
        write(tmp_path / f"trades-{beta}-0", "trades", last=network(rerr, 2.0, beta / 5), loss__beta=beta)
    write(tmp_path / "at-0", "at")
    figure = drawn(tmp_path)["fig1"].figure
    assert sorted(t.get_text() for t in figure.axes[0].texts) == ["AT (baseline)", "TRADES"]
    (mark,) = (t for t in figure.axes[0].texts if t.get_text() == "TRADES")
    assert mark.xy == pytest.approx((1.2, 2.0))


# The page


class Page(HTMLParser):
    """Its ids, its links, and whatever it would load."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href") and not value.startswith(
                "#"
            ):
                self.loads.append((tag, value))


def test_the_page_is_self_contained_and_every_link_leads_somewhere(tmp_path):
    a_study(tmp_path, lambda f: 0.5 + f, methods=19)
    text = report(tmp_path, resamples=50).page.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.loads == [("link", "data:,")]
    assert not re.search(r"@import|url\((?!#)|<script", text)
    assert {link for link in page.links if link[0] != "#" or link[1:] not in page.ids} == set()
    assert {f"#run-m{i}-{seed}" for i in range(19) for seed in range(3)} <= set(page.links)
    assert set(re.findall(r'(?:xlink:href|url)\(?="?#([^")]+)', text)) <= set(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_every_run_tells_recipe_seed_environment_protocol_and_time(tmp_path):
    write(tmp_path / "mine-0", "mine", 7, loss__beta=6.5)
    text = report(tmp_path, resamples=50).page.read_text()
    section = text[text.index('id="run-mine-0"') :]
    for words in (
        "recipe mine",
        "seed 7",
        "trained in 1.5 min",
        "measured in 0.1 min",
        "beta = 6.5",
        'href="#environment-1"',
    ):
        assert words in section
    assert "robustness: 200 test, 100 train examples: robust_loss (steps 20)" in text


def test_a_page_of_many_runs_stays_small(tmp_path, monkeypatch):
    a_study(tmp_path, lambda f: f, methods=4, seeds=5)
    whole = len(report(tmp_path, resamples=20).page.read_text())
    monkeypatch.setattr("hookflat.reporting.page.LIMIT", whole - 1)
    smaller = report(tmp_path, resamples=20).page.read_text()
    assert len(smaller) < whole
    assert "<summary>recipe</summary>" not in smaller
    assert "recipe is <code>recipe.toml</code> in its folder" in smaller
    assert 'id="run-m3-4"' in smaller
    monkeypatch.setattr("hookflat.reporting.page.LIMIT", 1)
    smallest = report(tmp_path, resamples=20).page.read_text()
    assert "<svg" not in smallest
    assert all(value.startswith("data:") for _, value in Page(smallest).loads)
    assert sum(tag == "img" for tag, _ in Page(smallest).loads) == smaller.count("<svg")


def test_figures_of_many_methods_can_be_read(tmp_path):
    a_study(tmp_path, lambda f: f, methods=45, seeds=1)
    for i in range(45):
        values = {"stage": "t", "split": "test", "average_flatness": 1.0, "rloss": 2.0}
        records(tmp_path / f"m{i}-0", [{"epoch": epoch, **values} for epoch in (1, 2)])
    drawings_ = drawn(tmp_path)
    texts = [t.get_text() for t in drawings_["fig1"].figure.axes[0].texts]
    assert texts == [f"m{i}" for i in (*range(20), *range(25, 45))]
    assert "the 20 methods of least test RErr and the 20 of largest" in drawings_["fig1"].caption
    assert [a.get_title() for a in drawings_["fig5"].figure.axes[:24]] == [f"m{i}" for i in range(24)]
    assert "The 24 of 45 methods" in drawings_["fig5"].caption


def test_markup_in_names_is_text(tmp_path):
    write(tmp_path / "mine-0", "<b>&mine</b>", notes__text="</pre><script>x</script>")
    text = report(tmp_path, resamples=20).page.read_text()
    assert "<b>&mine" not in text
    assert "<script>" not in text


def test_names_that_mathematics_or_ids_would_trip_over(tmp_path):
    for name in ("a b", "a_b", "a$\\x$"):
        write(tmp_path / f"{name}-0", name)
    page = Page(report(tmp_path, resamples=20).page.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link[1:] not in page.ids} == set()


def test_rescaled_runs_of_a_grid_are_their_method_s(tmp_path):
    for name in ("trades-beta=1-0-x0.5", "at-0-x2", "at_awp-xi=1e-05-7-x0.5"):
        write(tmp_path / name, "?", 7 if "7" in name else 0, last=network(0.4, 2.0, 1.0) | {"rescaled": 0.5})
        (tmp_path / name / "eval.json").unlink()
    assert sorted(run.method for run in gather([tmp_path]).runs) == ["at", "at_awp", "trades"]


def test_the_same_runs_give_the_same_bytes(tmp_path):
    a_study(tmp_path / "runs", lambda f: f, methods=6)
    first, second = (report(tmp_path / "runs", folder=tmp_path / name, resamples=50).folder for name in "ab")
    names = sorted(str(f.relative_to(first)) for f in first.rglob("*") if f.is_file())
    assert {"report.html", "report.md", "table1.tex", "statistics.csv", "figures/fig1.svg", "figures/fig1.pdf"} <= set(
        names
    )
    assert not [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]


def test_figures_in_files_have_no_links_and_stale_ones_go(tmp_path):
    run = write(tmp_path / "at-0", "at")
    folder = report(tmp_path, resamples=20).folder
    assert "<a " not in (folder / "figures" / "fig1.svg").read_text()
    results = json.loads((run / "eval" / "digits-last-best" / "eval.json").read_text())
    del results["models"]["last"]["test"]["average_flatness"]
    (run / "eval" / "digits-last-best" / "eval.json").write_text(json.dumps(results))
    again = report(tmp_path, resamples=20)
    assert not (folder / "figures" / "fig1.svg").exists()
    assert again.verdict == ["Average-case flatness was not measured: these runs say nothing about the claim."]


def test_a_report_of_runs_as_they_are_made(tmp_path):
    """From a recipe to the page by the command line; the recipe's own measures where no protocol was."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        """
data = { name = "digits", train = 32, test = 40 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "sgd" }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
loss = { name = "at" }
run = { epochs = 2, batch_size = 16, threads = 1 }
[eval.curves]
every = 1
splits = ["train", "test"]
examples = 10
[eval.curves.robust_loss]
steps = 1
restarts = 1
[eval.final]
splits = ["train", "test"]
examples = 20
[eval.final.robust_loss]
steps = 1
restarts = 1
[eval.final.average_flatness]
samples = 1
steps = 1
reference_restarts = 1
"""
    )
    assert hookflat("run", recipe, "--out", tmp_path / "runs" / "tiny-0").returncode == 0
    done = hookflat("report", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "The claim cannot be judged" in done.stdout or "too few networks" in done.stdout
    assert str(tmp_path / "runs" / "report" / "report.html") in done.stdout.replace("\n", "")
    results = json.loads((tmp_path / "runs" / "tiny-0" / "eval.json").read_text())
    (row,) = csv.DictReader((tmp_path / "runs" / "report" / "table1.csv").open())
    assert float(row["rerr_mean"]) == pytest.approx(100 * results["models"]["last"]["test"]["rerr_pgd"], rel=1e-4)
    assert (tmp_path / "runs" / "report" / "figures" / "fig2.png").exists()
    assert results["classes"] == 10
