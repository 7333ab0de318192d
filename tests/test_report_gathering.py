"""What a report reads of folders with every kind of trouble in them."""

import json
import math
from shutil import rmtree

import pytest
import tomli_w
from commands import fails
from made_runs import PROTOCOL, STAGES, drawn, measured, network, records, staged, told, write

from hookflat import UserError, report
from hookflat.reporting.gathering import gather
from hookflat.reporting.protocols import protocol_lines
from hookflat.reporting.table import table1


def test_what_is_left_out_is_named_with_the_reason(tmp_path):
    good = write(tmp_path / "at-0", "at")
    write(tmp_path / "trades-0~1", "trades_beta9")
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
    assert "eval.json is not what hookflat writes: " in why.pop("torn-0")
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
    assert drawn(tmp_path)["fig1"].caption.endswith("Triangles that point down: networks trained elsewhere.")


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


def test_numbers_on_training_images_alone_are_taken_too(tmp_path):
    """Of another protocol, beside test numbers of the same measure; a gap only with the test numbers it is from."""
    stage = {"training": {"examples": {"train": 50}, "measures": {"robust_loss": {}, "average_flatness": {}}}}
    for i in range(2):
        run = write(tmp_path / f"at-{i}", "at", i, last=network(0.4, 2.0, 1.0))
        alone = {"train": {"average_flatness": 0.25 + i, "rloss": 9.0}, "gap": {"average_flatness": 7.0}}
        measured(run, {"last": alone}, "training-last", staged(**stage))
    gathered = gather([tmp_path])
    last = [run.networks["last"] for run in gathered.runs]
    assert [n.value("average_flatness train") for n in last] == [0.25, 1.25]
    assert [n.value("average_flatness") for n in last] == [1.0] * 2
    assert math.isnan(last[0].value("average_flatness gap"))
    assert last[0].value("rloss train") != 9.0  # the main protocol's
    assert [(e.name, names) for e, names in gathered.others] == [("training-last", ["average_flatness"])]


def test_measures_of_another_norm_radius_or_other_options_are_not_mixed(tmp_path):
    others = ({"xi": 0.005}, {"eps": 0.3}, {"norm": "L2"}, {"step_size": 0.01})
    for i, other in enumerate(({}, {}, *others)):
        xi = other.pop("xi", 0.001)
        run = write(tmp_path / f"at-{i}", "at", i)
        stage = {"worst": {"examples": {"test": 200}, "measures": {"worst_flatness": {"xi": xi}}}}
        more = {"last": {"test": {"worst_flatness": xi}}}
        measured(run, more, "worst-last", staged(**stage) | other)
    runs = gather([tmp_path]).runs
    assert [run.networks["last"].test.get("worst_flatness") for run in runs] == [0.001, 0.001, *[None] * len(others)]


def test_networks_measured_in_another_norm_are_left_out(tmp_path):
    for i, norm in enumerate(("Linf", "L2", "Linf")):
        write(tmp_path / f"at-{i}", "at", i, protocol=PROTOCOL | {"norm": norm})
    gathered = gather([tmp_path])
    assert [run.name for run in gathered.runs] == ["at-0", "at-2"]
    assert gathered.left_out == [("at-1", "measured otherwise: norm is L2, Linf for the others")]


def test_a_protocol_with_more_measures_goes_with_the_others(tmp_path):
    """More measures or stages, not other options, splits or examples of the same."""
    for i in range(3):
        write(tmp_path / f"at-{i}", "at", i)
    robustness, rloss = STAGES["robustness"], STAGES["robustness"]["measures"]
    average = {"average_flatness": {"xi": 0.5}}
    write(tmp_path / "more-0", "more", protocol=staged(robustness=robustness | {"measures": rloss | average}))
    write(
        tmp_path / "stage-0", "stage", protocol=staged(**STAGES, worst={"examples": {"test": 9}, "measures": average})
    )
    write(tmp_path / "later-0", "later", protocol=staged(robustness=robustness | {"take": "last"}))
    other = {"robust_loss": {"steps": 20, "restarts": 3}}
    write(tmp_path / "option-0", "option", protocol=staged(robustness=robustness | {"measures": other}))
    gathered = gather([tmp_path])
    assert [run.name for run in gathered.runs] == ["at-0", "at-1", "at-2", "more-0", "stage-0"]
    assert {name for name, _ in gathered.left_out} == {"later-0", "option-0"}


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
            write(tmp_path / study / f"trades-{seed}", "trades_beta9", seed, eval__eps=0.1 * seed)
            (tmp_path / study / f"trades-{seed}.log").write_text("done\n")
    same = network(0.4, 2.0, 1.0) | {"weights": "abc"}
    write(tmp_path / "table1" / "at-0", "at", last=same)
    copy = write(tmp_path / "again", "at-0", last=same)
    (copy / "eval.json").write_text((copy / "eval" / "digits-last-best" / "eval.json").read_text())
    rmtree(copy / "eval")
    gathered = gather([tmp_path / "table1", tmp_path / "grid", copy])
    assert sorted((c.method, len(c.runs)) for c in gathered.configurations) == [("at", 1), ("trades_beta9", 2)]
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
    write(tmp_path / "at-0", "at", 0, loss__name="trades")
    write(tmp_path / "at-1", "at", 1, loss__name="trades", loss__beta=6.0)  # the default
    write(tmp_path / "at-2", "at", 2, loss__name="trades", loss__beta=9.0)
    assert [len(c.runs) for c in gather([tmp_path]).configurations] == [2, 1]


def test_a_plugin_that_some_runs_lack_is_one_difference(tmp_path):
    write(tmp_path / "at-0", "at")
    write(tmp_path / "at-1", "at", plugins__awp={"xi": 0.01})
    write(tmp_path / "at-2", "at", plugins__awp={"xi": 0.02})
    write(tmp_path / "mart-0", "mart", optimizer__weight_decay=0.01)
    write(tmp_path / "mart-1", "mart", optimizer__weight_decay=0.02, plugins__figures={})
    write(tmp_path / "trades-0", "trades")
    write(tmp_path / "trades-1", "trades", plugins__augment={"flip": True})
    keys = [c.key for c in gather([tmp_path]).configurations]
    assert keys[:3] == ["at without awp", "at xi=0.01", "at xi=0.02"]
    assert keys[3:5] == ["mart weight_decay=0.01", "mart weight_decay=0.02"]
    assert keys[5:] == ["trades without augment", "trades with augment"]
    table = table1(gather([tmp_path]))
    assert {"AT (baseline), without awp", "AT (baseline), xi 0.01", "MART, weight_decay 0.01"} <= {
        row.title for row in table.rows
    }


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ([{}, {"every": 2}], [2]),  # the same training
        ([{"every": 2}, {"every": 2}, {}], [3]),
        ([{"every": 2}, {"every": 5}, {}], [1, 1, 1]),  # other networks are picked
        ([{"source": "train"}, {}], [1, 1]),  # fewer images to train on
    ],
)
def test_early_stopping_on_test_images_makes_no_configuration(options, runs, tmp_path):
    for seed, table in enumerate(options):
        tables = {"plugins__early_stopping": {"holdout": 500} | table} if table else {}
        write(tmp_path / f"at-{seed}", "at", seed, **tables)
    assert [len(c.runs) for c in gather([tmp_path]).configurations] == runs


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
    assert why["dir-0"] == "metrics.jsonl cannot be read: Is a directory"
    assert why["null-0, 3 lines, 1 the first, of metrics.jsonl"] == "damaged"
    assert why["none-0, last test third"] == "not a finite number"


def test_several_radii(tmp_path):
    """average_flatness_xi0.5 is the paper's."""
    for i in range(7):
        last = network(0.3 + 0.01 * i, 1 + i, 0)
        del last["test"]["average_flatness"]
        last["test"] |= {"average_flatness_xi0.25": 0.1, "average_flatness_xi0.5": 0.3 * i}
        write(tmp_path / f"m{i}-0", f"m{i}", last=last)
    gathered = gather([tmp_path])
    assert table1(gathered).numbers["average flatness"] == "average_flatness_xi0.5"
    assert told(tmp_path)[0].startswith("The claim holds here")
    assert drawn(tmp_path)["fig1"].figure.axes[0].get_xlabel().startswith("average-case flatness at xi = 0.5 in RLoss")


def test_nothing_to_report_on(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a folder" in fails(2, "report", tmp_path / "none")
    assert "no run that is trained and measured" in fails(2, "report", tmp_path / "empty")
    (tmp_path / "empty" / "x").mkdir()
    assert "x: no run: it has neither" in fails(2, "report", tmp_path / "empty")
