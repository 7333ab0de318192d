"""A study of checkpoints: networks of others, measured alike."""

import csv
import json
import os
from dataclasses import asdict
from shutil import copy, copytree

import pytest
import torch
from commands import hookflat
from made_runs import network, write
from safetensors.torch import load_file, save_file
from test_field_networks import rice_names, trades_names
from test_study import here  # noqa: F401

from hookflat import UserError, report, run
from hookflat.recipe.catalogue import Catalogue
from hookflat.reporting.analysis import analyse
from hookflat.reporting.gathering import gather
from hookflat.reporting.leaderboard import leaderboard
from hookflat.reporting.runs import read_run
from hookflat.reporting.table import table1
from hookflat.studies.execution import Plan, make
from hookflat.studies.study import read_study

RECIPE = """
data = { name = "digits", train = 32, test = 40 }
optimizer = { name = "sgd" }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
run = { epochs = 2, batch_size = 16, threads = 1 }
[loss]
name = "at"
[eval]
eps = 0.15
step_size = 0.05
"""

MEASURES = """
[eval.quick]
splits = ["train", "test"]
examples = 20
[eval.quick.robust_loss]
steps = 2
restarts = 1
[eval.quick.average_flatness]
samples = 1
steps = 1
reference_restarts = 1
"""

ZOO = """
[study]
folder = "{folder}/zoo"
protocol = "{folder}/quick.toml"
which = ["last", "best"]
measure = {{ "eval.eps" = 0.15, "eval.step_size" = 0.05 }}

[[study.checkpoints]]
models = ["{folder}/files/wrn.pt"]
name = "TRADES-WRN"
method = "TRADES"
arch = "wide_resnet"
data = "digits"
normalize = "data"
key = "state_dict"
early_stopped = true
set = {{ "model.depth" = 10, "model.widen" = 1, "data.train" = 32, "data.test" = 40 }}

[[study.checkpoints]]
models = ["{folder}/files/rice*.pth"]
arch = "preact_resnet"
data = "digits"
normalize = "data"
set = {{ model = {{ width = 8, blocks = 1 }}, data = {{ train = 32, test = 40 }} }}

[[study.checkpoints]]
models = ["{folder}/files/timm.safetensors"]
arch = "timm:test_resnet"
data = "digits"
normalize = "data"
set = {{ "model.stem" = "cifar", "data.train" = 32, "data.test" = 40 }}

[[study.checkpoints]]
models = ["{folder}/runs/*"]
"""


def trained(place, model, **more):
    """A run, and its weights without the normalisation that is its first layer."""
    (place / "recipe.toml").write_text(RECIPE + MEASURES.replace("quick", "final"))
    overrides = {f"model.{key}": value for key, value in model.items()} | more
    done = run(place / "recipe.toml", overrides=overrides, folder=place / "trained" / model["name"])
    weights = load_file(done.folder / "model.safetensors")
    return done, {k.removeprefix("net."): v for k, v in weights.items() if k.startswith("net.")}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Four architectures, three of them written as others write them; the numbers that their trainings measured."""
    place = tmp_path_factory.mktemp("zoo")
    (place / "files").mkdir()
    (place / "quick.toml").write_text(MEASURES)
    (place / "study.toml").write_text(ZOO.format(folder=place))
    wrn, weights = trained(place, {"name": "wide_resnet", "depth": 10, "widen": 1})
    held = {"module." + trades_names(key): value for key, value in weights.items()}
    torch.save({"epoch": 76, "state_dict": held, "ema": {"x": torch.zeros(1)}}, place / "files" / "wrn.pt")
    rice, weights = trained(place, {"name": "preact_resnet", "width": 8, "blocks": 1})
    torch.save({rice_names(key): value for key, value in weights.items()}, place / "files" / "rice.pth")
    timm, weights = trained(place, {"name": "timm", "network": "test_resnet", "stem": "cifar"})
    save_file(weights, place / "files" / "timm.safetensors")
    stopping = {"plugins.early_stopping": {"holdout": 8, "every": 1, "steps": 1, "restarts": 1}}
    own, _ = trained(place, {"name": "resnet_small", "width": 8}, **stopping)
    (place / "runs").mkdir()
    own.folder.rename(place / "runs" / "mine-0")
    (place / "runs" / "mine-0.log").write_text("no network\n")
    stopped = place / "runs" / "mine-0" / "checkpoints" / "best.safetensors"  # as if earlier than the last
    save_file({k: v * 0.9 if v.is_floating_point() else v for k, v in load_file(stopped).items()}, stopped)
    names = {"TRADES-WRN": wrn, "rice": rice, "timm": timm, "mine-0": own}
    return place, {name: done.results.models["last"] for name, done in names.items()}


@pytest.fixture
def measured(zoo, here):  # noqa: F811
    place, _ = zoo
    read = read_study(place / "study.toml")
    said = []
    assert set(make(read, say=said.append).values()) == {"done"}, said
    return read


def test_networks_of_others_measure_as_they_did_where_they_were_trained(zoo, measured):
    """Whatever file, prefix, names and architecture they come in."""
    place, expected = zoo
    assert [job.name for job in measured.jobs] == ["TRADES-WRN", "rice", "timm", "mine-0", "mine-0-best"]
    for name, of in expected.items():
        there = json.loads((place / "zoo" / name / "eval.json").read_text())["models"]["last"]
        for split in ("train", "test"):
            assert there[split] == pytest.approx(getattr(of, split), rel=1e-4, abs=1e-5)


def test_what_is_measured_is_left_alone_and_what_changed_is_told(zoo, measured, monkeypatch):
    place, _ = zoo
    ran = []
    with monkeypatch.context() as patch:
        patch.setattr("hookflat.studies.execution.Commands.status", lambda *a: ran.append(a))
        assert set(make(measured).values()) == {"done"}
        assert not ran
        (place / "study.toml").write_text(ZOO.format(folder=place).replace('"TRADES"', '"TRADES-like"'))
        again = read_study(place / "study.toml")
        assert set(make(again).values()) == {"done"}  # another label needs no measuring
        assert not ran
    assert read_run("w", place / "zoo" / "TRADES-WRN").method == "TRADES-like"
    (place / "study.toml").write_text(ZOO.format(folder=place).replace('"eval.eps" = 0.15', '"eval.eps" = 0.1'))
    changed = read_study(place / "study.toml")
    assert set(Plan.of(changed).states.values()) == {"changed"}
    assert changed.jobs[0].changes() == ["eval.eps: 0.15 in the folder, 0.1 now"]
    (place / "study.toml").write_text(ZOO.format(folder=place))
    results = (place / "zoo" / "rice" / "eval.json").stat().st_mtime
    os.utime(place / "files" / "rice.pth", (results + 5, results + 5))
    told = hookflat("study", place / "study.toml", "--plan").stdout
    assert "rice.pth is younger than what was measured of it" in told
    os.utime(place / "files" / "rice.pth", (results - 5, results - 5))
    make(read_study(place / "study.toml"))


def test_the_report_is_a_leaderboard(zoo, measured, tmp_path):
    place, expected = zoo
    written = report(place / "zoo", folder=tmp_path / "report", resamples=20)
    assert written.left_out == []
    rows = {row["network"]: row for row in csv.DictReader((tmp_path / "report" / "leaderboard.csv").open())}
    assert rows.keys() == {"TRADES-WRN", "rice", "timm", "mine-0", "mine-0-best"}
    errors = {name: float(row["rerr"]) for name, row in rows.items()}
    flatness = {name: float(row["average"]) for name, row in rows.items()}
    for name, row in rows.items():
        assert int(row["place_by_rerr"]) == 1 + sum(other < errors[name] for other in errors.values())
        assert int(row["place_by_flatness"]) == 1 + sum(other < flatness[name] for other in flatness.values())
    assert errors["rice"] == pytest.approx(100 * expected["rice"].test["rerr_pgd"], rel=1e-4)
    assert {name for name, row in rows.items() if row["early_stopped"] == "True"} == {"TRADES-WRN", "mine-0-best"}
    assert rows["TRADES-WRN"]["architecture"] == "wide_resnet, depth 10, widen 1"
    assert rows["timm"]["architecture"] == "timm:test_resnet"
    assert rows["mine-0-best"]["method"] == "recipe"  # the recipe that it was trained by
    page = written.page.read_text()
    assert 'id="leaderboard"' in page
    assert "Triangles: early-stopped networks." in page
    assert "5 networks" in written.verdict[0]


def test_weights_beside_runs_are_not_passed_over(zoo, tmp_path):
    """Nor taken for a run: nothing says what network they are of. Logs and tables are no networks."""
    place, _ = zoo
    copytree(place / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "external.csv").write_text("run,rerr,source\n")
    (tmp_path / "zoo.toml").write_text(
        f'[study]\nprotocol = "quick"\ncheckpoints = [{{ models = ["{tmp_path}/runs/*"] }}]'
    )
    assert [job.name for job in read_study(tmp_path / "zoo.toml").jobs] == ["mine-0"]
    copy(place / "files" / "rice.pth", tmp_path / "runs")
    with pytest.raises(UserError, match=r"checkpoint rice: .*--arch"):
        read_study(tmp_path / "zoo.toml")


def test_two_checkpoints_of_a_method_are_two_rows_and_one_method(tmp_path):
    for i, (name, method) in enumerate((("a", "TRADES"), ("b", "TRADES"), ("c", "c"))):
        write(tmp_path / name, "x", last=network(0.3 + 0.1 * i, 1.5 + i, 0.4))
        inner = tmp_path / name / "eval" / "digits-last-best" / "eval.json"
        (tmp_path / name / "eval.json").write_text(inner.read_text())
        inner.unlink()
        (tmp_path / name / "checkpoint.json").write_text(json.dumps({"name": name, "method": method}))
    table = table1(gather([tmp_path]))
    assert [(row.title, row.configuration.method) for row in table.rows] == [
        ("a", "TRADES"),
        ("b", "TRADES"),
        ("c", "c"),
    ]
    assert [s.method for s in leaderboard(table)] == ["TRADES", "TRADES", ""]
    result = analyse(gather([tmp_path]), 20).overall["average_flatness", "rloss"]
    assert (result.models, result.clusters) == (3, 2)  # two of a method are no independent evidence
    write(tmp_path / "own" / "at-0", "at")
    assert leaderboard(table1(gather([tmp_path / "own"]))) == []


def test_flags_and_external_numbers_stand_in_the_leaderboard(tmp_path):
    more = {name: asdict(quantity) for name, quantity in Catalogue().find("trust").load()().numbers().items()}
    for i, flags in enumerate(({"trust_radius": 1.0, "trust_square": 1.0}, {"trust_radius": 0.0}, {})):
        name, numbers = "abc"[i], network(0.3 + 0.1 * i, 1.5 + i, 0.4)
        numbers["test"] |= flags
        folder = write(tmp_path / name, "x", last=numbers)
        inner = folder / "eval" / "digits-last-best" / "eval.json"
        results = json.loads(inner.read_text())
        (folder / "eval.json").write_text(json.dumps(results | {"numbers": results["numbers"] | more}))
        inner.unlink()
        (folder / "checkpoint.json").write_text(json.dumps({"name": name, "method": "TRADES"}))
    (tmp_path / "external.csv").write_text("run,rerr,source\nb,41.5,RobustBench\n")
    done = report(tmp_path, resamples=10)
    lines = {row["network"]: row for row in csv.DictReader((done.folder / "leaderboard.csv").open())}
    assert {name: (row["trust"], row["external"]) for name, row in lines.items()} == {
        "a": ("2 flags", ""),
        "b": ("ok", "41.5"),
        "c": ("", ""),
    }
    shown = (done.folder / "report.md").read_text().split("## Leaderboard")[1].split("## Table 1")[0]
    assert "external RErr | trust |" in shown
    assert "| 41.5 | ok |" in shown


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ('models = ["{0}/x.pt"]', "neither a run folder, nor a file"),
        ('models = ["{0}/w.pt"]', "say what network it is for"),
        ('models = ["{0}/w.pt"]\narch = "resnet18"', "say what to measure on"),
        ('models = ["{0}/w.pt"]\narch = "resnet19"\ndata = "digits"', "checkpoint w: .*did you mean 'resnet18'"),
        ('models = ["{0}/*.pth"]', "no run folder and no file"),
        ('models = ["{0}/begun"]', "has no network last: its training is not finished"),
        ("models = []", "say which, files, run folders"),
        ('models = ["a", "b"]\nname = "x"', "names 2 networks"),
        ('models = ["a"]\nmodel = "x"', "unknown option"),
        ('models = ["{0}/w.pt", "{0}/w.pt"]\narch = "resnet18"\ndata = "digits"', "'w' twice"),
    ],
)
def test_wrong_rows_are_told_before_anything_runs(tmp_path, table, match):
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "begun").mkdir()
    study = tmp_path / "study.toml"
    study.write_text('[study]\nprotocol = "quick"\n[[study.checkpoints]]\n' + table.format(tmp_path))
    with pytest.raises(UserError, match=match):
        read_study(study)


def test_a_study_of_checkpoints_needs_a_protocol_and_takes_no_overlays(tmp_path):
    study = tmp_path / "study.toml"
    study.write_text('[[study.checkpoints]]\nmodels = ["w.pt"]')
    with pytest.raises(UserError, match="measured by a protocol"):
        read_study(study)
    with pytest.raises(UserError, match="--with scales/cifar10: a study of checkpoints trains nothing"):
        read_study(study, overlays=["scales/cifar10"], protocol="quick")
    study.write_text('[study]\ncheckpoints = ["w.pt"]')
    with pytest.raises(UserError, match=r"should be tables \[\[study.checkpoints\]\]"):
        read_study(study)
