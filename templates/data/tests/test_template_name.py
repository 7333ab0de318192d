"""The contract of hookflat's plugins, what the images are, the recipe."""

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


def test_splits_have_their_sizes_and_share_no_image():
    data = TemplateName(train=30, test=20, size=6).build_data()
    assert data.train.x.shape == (30, 1, 6, 6)
    assert data.test.x.shape == (20, 1, 6, 6)
    assert (data.train.x[:, None] != data.test.x[None]).flatten(2).any(dim=2).all()


def test_every_class_is_in_both_splits():
    data = TemplateName().build_data()
    for images in (data.train, data.test):
        assert images.y.unique().tolist() == list(range(data.num_classes))


def test_the_images_are_the_same_every_time():
    one, other = (TemplateName().build_data() for _ in range(2))
    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.test.y, other.test.y)


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
    assert done.results.classes == 2
