"""The contract of hookflat's plugins, the formula, the recipe."""

from __future__ import annotations

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


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_the_criterion_is_the_formula(beta):
    """In float64: cross-entropy minus beta times entropy, of each example."""
    logits, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    expected = -log_p[np.arange(8), y.numpy()] - beta * entropy
    with testing.tiny_run({"plugins": {"template_name": {"beta": beta}}}, [TemplateName]) as run:
        assert run.criterion(logits, y).numpy() == pytest.approx(expected, rel=1e-5)


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
