"""The contract of hookflat's plugins, a case whose value is known, the recipe."""

from __future__ import annotations

from pathlib import Path

import hookflat
import pytest
import torch
from hookflat import Examples, Images, Subject, Threat, testing
from torch import nn

import hookflat_template_name
from hookflat_template_name.template_name import TemplateName, margin

RECIPE = Path(hookflat_template_name.__file__).parent / "recipes" / "template_name.toml"


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(TemplateName)


def measured(model, x, y, *, eps, batch_size=100):
    """The measure of a network on images (n, C, H, W) uint8."""
    examples = Examples(Images(x, y), batch_size=batch_size)
    subject = Subject(model, "test", examples, num_classes=2, threat=Threat(eps), step_size=eps / 4, seed=0)
    return TemplateName().measure(subject)["template_name"]


def linear_case():
    """A linear network of two classes, gray images well inside [0, 1], and labels."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.normal_(model[1].weight, generator=generator)
    x = torch.randint(64, 192, (6, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return model, x, torch.tensor([0, 1, 0, 1, 1, 0])


def test_of_a_linear_network_it_is_the_closed_form():
    """A step of eps against the sign of each weight lowers the margin by eps times their L1 norm."""
    model, x, y = linear_case()
    weight = model[1].weight.detach()
    clean = margin(model(x.float() / 255), y).mean().item()
    expected = clean - 0.1 * (weight[0] - weight[1]).abs().sum().item()
    assert measured(model, x, y, eps=0.1) == pytest.approx(expected, rel=1e-4)


def test_it_does_not_depend_on_the_batch_size():
    model, x, y = linear_case()
    one, other = (measured(model, x, y, eps=0.1, batch_size=size) for size in (2, 6))
    assert one == pytest.approx(other, rel=1e-5)


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
    assert "template_name" in done.results.models["last"].test
