"""Trackers get what the run folder has."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hookflat import UserError
from hookflat.recipe.recipe import TRACKERS
from hookflat.testing import run_recipe

TABLES = {"plugins": {"figures": {}}, "eval": {"curves": {"splits": ["test"]}}}


def test_tensorboard_has_curves_figures_and_the_recipe(tmp_path):
    tables = {"track": {"with": ["tensorboard"]}, "plugins": {"figures": {}}, "eval": {"curves": {"splits": ["test"]}}}
    folder = run_recipe(tables, tmp_path / "run").folder
    logged = EventAccumulator(str(folder / "tracking" / "hookflat"), size_guidance={"images": 0}).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["rloss"]) for line in lines if line["stage"] == "curves"]
    points = [(event.step, event.value) for event in logged.Scalars("curves/test/RLoss")]
    assert [step for step, _ in points] == [step for step, _ in expected] == [3, 6]
    assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert "training/train/loss" in logged.Tags()["scalars"]
    assert logged.Tags()["images"] == ["overfitting"]
    (hparams,) = (folder / "tracking" / "hookflat").glob("*/hparams.yml")
    assert "attack.steps: 2" in hparams.read_text()
    assert 'with = [\n    "tensorboard",\n]' in (folder / "recipe.toml").read_text()


def test_trackers_that_are_not_there_are_told_with_the_recipe(tmp_path):
    with pytest.raises(UserError, match=r"track: no tracker is called 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        run_recipe({"track": {"with": ["tensorbord"]}}, tmp_path / "run")
    with pytest.raises(UserError, match="'aim' is not installed: pip install aim"):
        run_recipe({"track": {"with": ["aim"]}}, tmp_path / "run")
    with pytest.raises(UserError, match="unknown option"):
        run_recipe({"track": {"name": "x"}}, tmp_path / "run")


def test_every_tracker_of_accelerate_is_known():
    assert set(LOGGER_TYPE_TO_CLASS) <= set(TRACKERS)


def curve(folder):
    """Step and RLoss of the curves on test, as the run's folder has them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line["rloss"])) for line in lines if line["stage"] == "curves"]


def test_wandb_offline_has_the_curves_and_the_recipe(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = run_recipe(TABLES | {"track": {"with": ["wandb"]}}, tmp_path / "run").folder
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    said = file.read_bytes()  # numbers are JSON in its records
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [line["rloss"] for line in lines if line["stage"] == "curves"]
    assert len(values) == 2
    assert all(json.dumps(value).encode() in said for value in values)
    assert b"curves/test/RLoss" in said
    assert b"attack.steps" in said
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/overfitting*.png"))


def test_trackio_has_the_curves(tmp_path, monkeypatch):
    """In its local database, in a process of its own: it reads its folder when it is imported."""
    pytest.importorskip("trackio")
    code = f"""
from pathlib import Path
from hookflat.testing import run_recipe
run_recipe({TABLES | {"track": {"with": ["trackio"], "project": "ours"}}!r}, Path("run"))
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (database,) = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(database) as connection:
        rows = [(step, json.loads(values)) for step, values in connection.execute("SELECT step, metrics FROM metrics")]
    assert sorted((s, v["curves/test/RLoss"]) for s, v in rows if "curves/test/RLoss" in v) == curve(tmp_path / "run")
