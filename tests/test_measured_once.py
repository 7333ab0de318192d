"""The last network of a training may be its best: then it is measured once, for both."""

import pytest

import hookflat
from hookflat.reporting.gathering import gather
from hookflat.reporting.runs import distinct
from hookflat.testing import TinyData, TinyModel, run_recipe
from hookflat.training.measuring import Measurements

STOPPING = {"early_stopping": {"holdout": 3, "every": 1, "steps": 1, "restarts": 1}}
FINAL = {"splits": ["test", "train"], "robust_loss": {"steps": 2, "restarts": 1}}


@pytest.fixture
def measured(monkeypatch):
    """The stages at the end that were measured."""
    stages, stage = [], Measurements.stage

    def counted(self, name, subjects, done=None):
        stages.extend([name] if self.recipe.stages[name].every is None else [])
        return stage(self, name, subjects, done)

    monkeypatch.setattr(Measurements, "stage", counted)
    return stages


def test_numbers_and_files_are_there_for_both(tmp_path, measured):
    tables = {"run": {"epochs": 1}, "plugins": STOPPING, "eval": {"final": FINAL}}
    folder = run_recipe(tables, tmp_path / "run").folder
    models = hookflat.Results.read(folder / "eval.json").models
    last, best = models["last"], models["best"]
    assert measured == ["final"]
    assert last.test
    assert (best.test, best.train, best.gap, best.epoch) == (last.test, last.train, last.gap, 1)
    assert last.seconds
    assert not best.seconds
    (run,) = gather([folder]).runs
    assert set(run.networks) == {"last", "best"}
    assert [label for _, label, _ in distinct([run])] == ["last"]  # a report counts them once
    tables = {p.name for p in (folder / "tables").iterdir()}
    assert {name.replace("last-", "best-") for name in tables if name.startswith("last-")} < tables
    measured.clear()
    options = {"measures": ["clean_error"], "plugins": [TinyData, TinyModel]}
    again = hookflat.evaluate(folder, which=["last", "best"], **options).results.models
    assert measured == ["measures"]
    assert again["best"].test == again["last"].test != {}
    assert again["best"].weights == again["last"].weights


def test_other_weights_and_other_stages_are_measured(tmp_path, measured):
    final = FINAL | {"models": ["last"]}
    tables = {"run": {"epochs": 1}, "plugins": STOPPING, "eval": {"final": final, "more": {"weight_norm": {}}}}
    models = run_recipe(tables, tmp_path / "run").results.models
    assert measured == ["final", "more", "more"]  # "last" has both stages, "best" one
    assert "rloss" in models["last"].test
    assert "rloss" not in models["best"].test
    measured.clear()
    worse = {
        "run": {"epochs": 3},
        "optimizer": {"lr": 1.0},
        "plugins": STOPPING,
        "eval": {"final": FINAL},
    }
    models = run_recipe(worse, tmp_path / "worse").results.models
    assert models["best"].epoch < 3
    assert measured == ["final", "final"]
