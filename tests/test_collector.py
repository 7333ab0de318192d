"""Python's garbage collector: patient while modules are imported, as usual where anything is computed."""

import gc
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import hookflat
import hookflat.cli
from hookflat import UserError, collector, hookimpl, testing
from hookflat.cli.app import app

USUAL = gc.get_threshold()


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(hookflat.cli, "app", lambda: None)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    gc.unfreeze()
    hookflat.cli.main()
    assert gc.get_threshold()[0] > 1_000_000
    assert gc.get_freeze_count()  # the command has ended
    gc.unfreeze()
    yield
    collector.as_usual()
    assert gc.get_threshold() == USUAL


@pytest.mark.parametrize(("triton", "frozen"), [("3.8.1", True), ("3.9.0", False), ("3.10.0+git1", False)])
def test_a_triton_that_counts_its_objects_finds_them_collected(triton, frozen, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))
    freezes = []
    monkeypatch.setattr(gc, "freeze", lambda: freezes.append(True))
    collector.leave_the_rest()
    assert bool(freezes) == frozen


@dataclass(eq=False)
class Watching:
    """Sees the collector at every step."""

    @hookimpl
    def after_step(self, run):
        assert gc.get_threshold() == USUAL


@dataclass(eq=False)
class Watched:
    """A measure that sees it."""

    @hookimpl
    def measure(self, subject):
        return {"usual": float(gc.get_threshold() == USUAL)}


def test_training_and_measuring_find_the_collector_as_it_was(patient, tmp_path):
    recipe = testing.recipe({"plugins": {"watching": {}}})
    plugins = [testing.TinyData, testing.TinyModel, Watching, Watched]
    hookflat.run(recipe, plugins=plugins, folder=tmp_path / "run")
    collector.be_patient()
    done = hookflat.evaluate(tmp_path / "run", measures=["watched"], plugins=plugins)
    assert done.results.models["last"].test["usual"] == 1


@pytest.mark.parametrize(
    ("command", "there"),
    [
        ("study", "hookflat.studies.study.read_study"),
        ("report", "hookflat.reporting.writing.report"),
        ("watch", "hookflat.watching.watched.Watched"),
    ],
)
def test_what_goes_on_for_long_collects_as_usual(patient, monkeypatch, command, there):
    seen = []

    def looked(*args, **options):
        seen.append(gc.get_threshold())
        raise UserError("that is all")

    monkeypatch.setattr(there, looked)
    assert CliRunner().invoke(app, [command, "somewhere"]).exit_code == 2
    assert seen == [USUAL]


def test_asked_twice_or_by_nobody_it_changes_nothing(patient):
    collector.be_patient()
    collector.as_usual()
    gc.set_threshold(500, 5, 5)
    collector.as_usual()
    assert gc.get_threshold() == (500, 5, 5)
    gc.set_threshold(*USUAL)
