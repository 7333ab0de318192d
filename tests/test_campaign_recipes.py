"""A few of the campaign's malformed recipes (tests/campaign/test_recipes.py)."""

import random

import torch  # noqa: F401 (its import takes longer than a recipe may)
from campaign.test_recipes import failure, raw, structured


def test_structured(tmp_path):
    cases = list(structured())
    assert len(cases) > 600
    for case in random.Random(0).sample(cases, 25):
        assert not failure(case, tmp_path)


def test_raw(tmp_path):
    source = raw(1)
    for _ in range(25):
        assert not failure(next(source), tmp_path)
