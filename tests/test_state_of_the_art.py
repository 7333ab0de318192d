"""Wang et al. 2023 as a recipe and an overlay: what it says, and that it trains small."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

import hookflat
from hookflat import load_recipe


def test_the_recipe_at_scale_is_the_setting_of_the_paper():
    tables = load_recipe("state_of_the_art", overlays=["scales/cifar10-generated"]).tables
    network, attack = tables["model"], tables["attack"]
    assert {k: network[k] for k in ("name", "depth", "widen", "act")} == {
        **{"name": "wide_resnet", "depth": 28},
        **{"widen": 10, "act": "silu"},
    }
    assert (tables["loss"]["name"], tables["loss"]["beta"]) == ("trades", 5.0)
    assert tables["plugins"]["extra_data"]["fraction"] == 0.7
    assert tables["plugins"]["label_smoothing"]["tau"] == 0.1
    assert tables["plugins"]["averaging"] == {"decay": 0.995, "statistics": "copy"}
    assert tables["schedule"] == {"name": "cosine", "warmup": 0.025, "floor": 0.0}
    optimizer = tables["optimizer"]
    assert (optimizer["name"], optimizer["lr"], optimizer["nesterov"], optimizer["momentum"]) == ("sgd", 0.2, True, 0.9)
    assert (tables["run"]["batch_size"], tables["run"]["epochs"]) == (512, 400)
    assert (attack["name"], attack["start"], attack["mode"], attack["keep"]) == ("pgd", "uniform", "train", "last")
    assert (attack["steps"], attack["eps"], attack["step_size"]) == (10, pytest.approx(8 / 255), pytest.approx(2 / 255))


def test_its_small_form_trains_on_generated_images(tmp_path):
    """PreActResNet-18 of an eighth of its width; the generated set is digits with noise."""
    digits, random = load_digits(), np.random.default_rng(0)
    images = np.clip(digits.images[600:900] * 15.9 + random.normal(0, 20, (300, 8, 8)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "generated.npz", image=images, label=digits.target[600:900])
    overrides = {
        **{"plugins.extra_data.path": str(tmp_path / "generated.npz"), "plugins.early_stopping.enabled": False},
        **{"model.width": 8, "data.train": 128, "data.test": 64, "run.epochs": 5, "run.batch_size": 32},
        **{"attack.steps": 2, "attack.eps": 0.05, "eval.eps": 0.05, "eval.final.examples": 64},
        **{"eval.final.robust_loss.steps": 2, "eval.final.robust_loss.restarts": 1, "plugins.figures.enabled": False},
        **{f"eval.{stage}.enabled": False for stage in ("curves", "through_training", "final_flatness")},
    }
    overlays = ["scales/extra-data", "scales/preact"]
    recipe = load_recipe("state_of_the_art", overlays=overlays, overrides=overrides)
    result = hookflat.run(recipe, folder=tmp_path / "run", quiet=True)
    about = json.loads((tmp_path / "run" / "data.json").read_text())["source"]["extra_data"]
    assert (about["images"], about["of_a_batch"]) == (300, 22)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "training"]
    assert losses[-1] < 0.95 * losses[0]
    assert 0 <= result.results.models["last"].test["rerr_pgd"] <= 1
