"""Every installed plugin keeps the contract that hookflat.testing ships to third parties."""

import numpy as np
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
    "adaptive_sharpness": {"samples": 1, "iterations": 1, "steps": 1, "norms": ["L2"]},
    "boundary_thickness": {"steps": 1, "points": 2},
    "filter_flatness": {"samples": 1, "steps": 1, "reference_restarts": 1},
    "flatness_along_attack": {"samples": 1, "steps": 1},
    "hessian_density": {"probes": 1, "lanczos_steps": 2, "steps": 1},
    "trust": {"steps": 1, "queries": 2},
}


@pytest.fixture(scope="module")
def extra_images(tmp_path_factory):
    path = tmp_path_factory.mktemp("extra") / "extra.npz"
    np.savez(path, image=np.arange(5 * 36, dtype=np.uint8).reshape(5, 6, 6), label=np.arange(5) % 3)
    return {"path": str(path)}


@pytest.mark.parametrize("plugin", Catalogue().names())
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, plugin, extra_images):
    check(plugin, extra_images if plugin == "extra_data" else OPTIONS.get(plugin))
