"""Every installed plugin keeps the contract that hookflat.testing ships to third parties."""

import pytest

from hookflat import testing
from hookflat.recipe.catalogue import Catalogue

OPTIONS = {
    "early_stopping": {"holdout": 4, "every": 1},
    "autoattack": {"version": "custom", "attacks": ["apgd-ce"]},
    "landscape": {"kind": "adversarial", "directions": 2, "points": 3, "steps": 1},
    "landscape_2d": {"points": 3, "steps": 1},
    "worst_flatness": {"attempts": 2, "sweeps": 2},
    "clean_worst_flatness": {"attempts": 2, "sweeps": 2},
    "hessian": {"probes": 2, "steps": 2, "remaximise": True},
}


@pytest.mark.parametrize("plugin", Catalogue().names())
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, plugin):
    check(plugin, OPTIONS.get(plugin))
