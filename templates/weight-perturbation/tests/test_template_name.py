"""The contract of hookflat's plugins, the radius, the recipe."""

from __future__ import annotations

from pathlib import Path

import hookflat
import pytest
import torch
from hookflat import layers, testing

import hookflat_template_name
from hookflat_template_name.template_name import TemplateName

RECIPE = Path(hookflat_template_name.__file__).parent / "recipes" / "template_name.toml"


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(TemplateName)


@pytest.mark.parametrize("xi", [0.01, 0.5])
def test_the_loss_is_computed_at_the_radius_and_the_weights_come_back(xi):
    """||w' - w|| = xi ||w|| in every layer while the network is called."""
    with testing.tiny_run({"plugins": {"template_name": {"xi": xi}}}, [TemplateName]) as run:
        batch = next(run.batches())
        weights = layers(run.network, biases=False)
        before = {name: w.detach().clone() for name, w in weights.items()}
        radii = {}

        def look(*_):
            radii.update({n: ((w - before[n]).norm() / before[n].norm()).item() for n, w in weights.items()})

        with run.network.register_forward_pre_hook(look):
            run.hook.gradients(run=run, batch=batch, x_adv=batch.x)
        assert radii == pytest.approx(dict.fromkeys(weights, xi), rel=1e-4)
        assert all(torch.equal(w, before[name]) for name, w in weights.items())


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
