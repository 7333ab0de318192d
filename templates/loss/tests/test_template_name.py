"""The contract of hookflat's plugins, the formula, the recipe."""

from __future__ import annotations

import copy
from pathlib import Path

import hookflat
import numpy as np
import pytest
import torch
from hookflat import testing

import hookflat_template_name
from hookflat_template_name.template_name import TemplateName

RECIPE = Path(hookflat_template_name.__file__).parent / "recipes" / "template_name.toml"


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(TemplateName)


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_the_loss_is_the_formula(weight):
    """In float64, from the logits of a copy of the network."""
    with testing.tiny_run({"loss": {"name": "template_name", "weight": weight}}, [TemplateName]) as run:
        batch = next(run.batches())
        x_adv = (batch.x + 0.05).clamp(0, 1)
        with torch.no_grad():
            z = copy.deepcopy(run.network).double()(x_adv.double()).numpy()
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        cross_entropy = -log_p[np.arange(len(z)), batch.y.numpy()].mean()
        assert run.loss(batch, x_adv).item() == pytest.approx(cross_entropy + weight * (z**2).mean(), rel=1e-5)


def test_a_negative_weight_is_refused(tmp_path):
    with pytest.raises(hookflat.UserError, match="loss.weight"):
        testing.run_recipe({"loss": {"name": "template_name", "weight": -1}}, tmp_path, [TemplateName])


def test_the_recipe_runs(tmp_path):
    few = {
        "run.epochs": 1,
        "data.train": 64,
        "model.width": 8,
        "plugins.early_stopping.enabled": False,
        "plugins.figures.enabled": False,
        "eval.curves.enabled": False,
        "eval.through_training.enabled": False,
        "eval.final.examples": 10,
        "eval.final.robust_loss.enabled": False,
        "eval.final_flatness.enabled": False,
    }
    done = hookflat.run(RECIPE, overrides=few, plugins=[TemplateName], folder=tmp_path / "run")
    assert 0 <= done.results.models["last"].test["clean_error"] <= 1
