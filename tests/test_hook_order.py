"""The loop's contract: the hooks of one small real run, in their order. Changing it changes the API."""

import json

from hookflat.testing import run_recipe

BUILD = ["build_data", "build_model", "build_optimizer", "build_schedule"]
STEP = ["transform_batch", "attack_objective", "craft", "gradients", "loss", "criterion", "extra_loss", "after_step"]
EPOCH_END = ["eval_model", "epoch_end"]
AWP_STEP = STEP[:3] + ["gradients"] + ["loss", "criterion", "extra_loss"] * 2 + ["after_step"]


def hooks(tmp_path, tables=None):
    tables = {"run": {"epochs": 2}, "plugins": {"recorder": {}} | (tables or {}).pop("plugins", {})} | (tables or {})
    folder = run_recipe(tables, tmp_path / "run").folder
    return [json.loads(line) for line in (folder / "hooks.jsonl").read_text().splitlines()]


def test_the_order_of_the_hooks(tmp_path):
    calls = hooks(tmp_path)
    epoch = STEP * 3 + EPOCH_END
    assert [name for name, _, _ in calls] == BUILD + epoch * 2 + ["eval_model", "draw"]
    assert [step for name, step, _ in calls if name == "after_step"] == [1, 2, 3, 4, 5, 6]


def test_a_weight_perturbation_runs_the_loss_twice(tmp_path):
    calls = hooks(tmp_path, {"plugins": {"awp": {}}, "run": {"epochs": 1}})
    assert [name for name, _, _ in calls] == BUILD + AWP_STEP * 3 + EPOCH_END + ["eval_model", "draw"]


def test_entropy_sgd_waits_with_after_step(tmp_path):
    calls = hooks(tmp_path, {"optimizer": {"name": "entropy_sgd", "langevin_steps": 3}, "run": {"epochs": 1}})
    assert [name for name, _, _ in calls].count("after_step") == 1


def test_shapes_are_what_the_hookspecs_say(tmp_path):
    shapes = {name: given for name, _, given in hooks(tmp_path)}
    assert shapes["transform_batch"] == {"x": [8, 1, 6, 6], "target": [8]}
    assert shapes["gradients"] == {"x_adv": [8, 1, 6, 6]}
    assert shapes["criterion"] == {"logits": [8, 3], "target": [8]}
