"""Trackers get what the run folder has."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hookflat import UserError
from hookflat.testing import run_recipe


def test_tensorboard_has_curves_figures_and_the_recipe(tmp_path):
    tables = {"track": {"with": ["tensorboard"]}, "plugins": {"figures": {}}, "eval": {"curves": {"splits": ["test"]}}}
    folder = run_recipe(tables, tmp_path / "run").folder
    logged = EventAccumulator(str(folder / "tracking" / "hookflat"), size_guidance={"images": 0}).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["rloss"]) for line in lines if line["stage"] == "curves"]
    found = [(event.step, event.value) for event in logged.Scalars("curves/test/RLoss")]
    assert [step for step, _ in found] == [step for step, _ in expected] == [3, 6]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
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
