"""The contract of hookflat's plugins, what the network is, the recipe."""

from __future__ import annotations

from pathlib import Path

import hookflat
import pytest
import torch
from hookflat import testing

import hookflat_template_name
from hookflat_template_name.template_name import TemplateName

RECIPE = Path(hookflat_template_name.__file__).parent / "recipes" / "template_name.toml"


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(TemplateName)


@pytest.mark.parametrize("width", [1, 4])
def test_it_has_a_logit_for_each_class_and_as_many_weights_as_it_should(width):
    with testing.tiny_run({"model": {"name": "template_name", "width": width}}, [TemplateName]) as run:
        x, classes = next(run.batches()).x, run.data.num_classes
        assert run.network(x).shape == (len(x), classes)
        convolutions = 9 * width * (run.data.channels + 2 * width)
        norms, linear = 2 * (width + 2 * width), (8 * width + 1) * classes
        assert sum(p.numel() for p in run.network.parameters()) == convolutions + norms + linear


def test_every_weight_gets_a_gradient():
    with testing.tiny_run({"model": {"name": "template_name"}}, [TemplateName]) as run:
        run.network(next(run.batches()).x).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in run.network.parameters())


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
