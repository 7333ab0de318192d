"""What a run's environment.json keeps of the code of others, and what is said where it is missing or has changed."""

import json

import pytest
from commands import fails
from commands import hookflat as command

import hookflat
from hookflat import UserError, testing
from hookflat.testing import TinyData, TinyModel

PLUGIN = """
from dataclasses import dataclass
import torch.nn.functional as F
from hookflat import hookimpl

@dataclass(eq=False)
class {name}:
    "Cross-entropy."
    tau: float = 0.1
    @hookimpl
    def {hook}
        return {value}
"""
LOSS = ("loss(self, run, batch):", "run.criterion(run.model(batch.x), batch.y).mean()")
REGULARIZER = ("criterion(self, logits, target):", "F.cross_entropy(logits, target, reduction='none')")
STAGES = ("curves", "through_training", "final", "final_flatness")
FEW = ["data.train=200", "data.test=40", "model.width=8", "run.epochs=2", "plugins.early_stopping.enabled=false"]
FEW += [f"eval.{stage}.enabled=false" for stage in STAGES]


def succeeds(*arguments):
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(file, name, hook, value):
    file.write_text(PLUGIN.format(name=name, hook=hook, value=value))
    return file


@pytest.fixture
def plugin(tmp_path):
    return written(tmp_path / "mine.py", "Mine", *REGULARIZER)


def trained(folder, plugin, *more, asked=("plugins.mine.tau=0.2",)):
    settings = [part for setting in (*FEW, *asked) for part in ("--set", setting)]
    return succeeds("run", "at", "--plugin", plugin, "--out", folder, *settings, *more)


def record(folder):
    return json.loads((folder / "environment.json").read_text())


def test_code_and_versions_that_changed_are_told_where_a_run_goes_on(plugin, tmp_path):
    folder = tmp_path / "run"
    trained(folder, plugin, "--max-steps", 1)
    assert record(folder)["plugin_files"] == {str(plugin): plugin.read_text()}
    known = record(folder)
    known["packages"]["torch"], known["git_revision"] = "2.9.0", None
    (folder / "environment.json").write_text(json.dumps(known))
    plugin.write_text(plugin.read_text() + "# another\n")
    said = trained(folder, plugin, "--max-steps", 2)
    told = [
        "mine.py has changed",
        f"torch 2.9.0 is {known['packages']['timm'] and record(folder)['packages']['torch']} now",
    ]
    assert f"this is other code than it had before: {'; '.join(told)}" in said
    assert record(folder)["changed"] == told
    assert "other code" not in trained(folder, plugin, "--max-steps", 3)
    assert record(folder)["changed"] == told  # who reads the results later sees it


def test_of_a_complete_run_and_its_evaluations_code_that_changed_is_told(plugin, tmp_path):
    folder = tmp_path / "run"
    trained(folder, plugin)
    assert "is complete already; its results" in trained(folder, plugin)
    measure = ("eval", folder, "--measure", "clean_error", "--set", "eval.measures.examples=20", "--plugin", plugin)
    assert "other code" not in succeeds(*measure)
    plugin.write_text(plugin.read_text() + "# another\n")
    assert "is complete already (mine.py has changed since); its results" in trained(folder, plugin)
    assert succeeds(*measure).count("mine.py has changed") == 1
    assert "changed" not in record(folder)


def test_a_missing_plugin_is_named_with_the_file_that_had_it(plugin, tmp_path):
    folder = tmp_path / "run"
    trained(folder, plugin)
    told = f"no plugin is called 'mine' (the run was trained with --plugin {plugin}, whose text is in environment.json)"
    assert told in fails(2, "eval", folder, "--measure", "clean_error")
    with pytest.raises(UserError, match="no plugin is called 'mine'"):
        hookflat.load(folder)
    known = record(folder)
    known["plugin_files"], known["packages"]["hookflat-mine"] = {}, "1.2"
    (folder / "environment.json").write_text(json.dumps(known))
    assert "(the run was trained with the package hookflat-mine 1.2)" in fails(
        2, "eval", folder, "--measure", "clean_error"
    )
    (folder / "environment.json").write_text("[]")
    nothing_known = fails(2, "eval", folder, "--measure", "clean_error")
    assert "no plugin is called 'mine'" in nothing_known
    assert "trained with" not in nothing_known


def test_a_run_is_rescaled_with_the_file_that_had_its_plugin(plugin, tmp_path):
    trained(tmp_path / "run", plugin)
    assert "(the run was trained with --plugin" in fails(2, "rescale", tmp_path / "run", 0.5)
    succeeds("rescale", tmp_path / "run", 0.5, "--plugin", plugin)
    assert hookflat.load(tmp_path / "run-x0.5", plugins=[plugin]).network


def test_a_run_is_measured_without_the_loss_that_trained_it(tmp_path):
    file = written(tmp_path / "loss.py", "MyLoss", *LOSS)
    trained(tmp_path / "run", file, asked=["loss.name=my_loss"])
    succeeds("eval", tmp_path / "run", "--measure", "clean_error", "--set", "eval.measures.examples=20")
    assert hookflat.load(tmp_path / "run").network


def test_code_of_an_installed_package_s_plugins_is_kept_too(tmp_path, monkeypatch):
    written(tmp_path / "somebodys.py", "Somebodys", *REGULARIZER)
    monkeypatch.syspath_prepend(tmp_path)
    from somebodys import Somebodys  # ty: ignore[unresolved-import]

    tables = {"plugins": {"somebodys": {}}, "run": {"epochs": 1}}
    folder = testing.run_recipe(tables, tmp_path / "run", [Somebodys]).folder
    assert record(folder)["plugin_files"] == {"somebodys": (tmp_path / "somebodys.py").read_text()}
    assert hookflat.load(folder, plugins=[TinyData, TinyModel, Somebodys]).network
