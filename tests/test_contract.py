"""Every installed plugin keeps the contract that hookflat.testing ships to third parties."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hookflat import Data, Images, TrainingFailed, hookimpl, in_mode, testing
from hookflat.recipe.catalogue import Catalogue

OPTIONS = {
    "average_flatness": {"samples": 2, "steps": 2, "reference_restarts": 2},
    "clean_average_flatness": {"samples": 3},
    "robust_loss": {"steps": 3, "restarts": 2},
    **{name: {"steps": 2} for name in ("input_gradients", "lipschitz", "margins", "relative_flatness", "sharpness")},
    "early_stopping": {"holdout": 4, "every": 1},
    "autoattack": {"version": "custom", "attacks": ["apgd-ce"]},
    "landscape": {"kind": "adversarial", "directions": 2, "points": 3, "steps": 1},
    "landscape_2d": {"points": 3, "steps": 1},
    "worst_flatness": {"attempts": 2, "sweeps": 2, "steps": 2, "reference_restarts": 2},
    "clean_worst_flatness": {"attempts": 2, "sweeps": 2},
    "hessian": {"probes": 2, "steps": 2, "remaximise": True, "tolerance": 0.1},
    "adaptive_sharpness": {"samples": 1, "iterations": 1, "steps": 1, "norms": ["L2"]},
    "boundary_thickness": {"steps": 1, "points": 2},
    "filter_flatness": {"samples": 1, "steps": 1, "reference_restarts": 1},
    "flatness_along_attack": {"samples": 1, "steps": 1},
    "multi_norm": {"linf": 0.1, "l2": 0.5, "l1": 2.0},
    "hessian_density": {"probes": 1, "lanczos_steps": 2, "steps": 1},
    "trust": {"steps": 1, "queries": 2},
}


@pytest.fixture(scope="module")
def extra_images(tmp_path_factory):
    path = tmp_path_factory.mktemp("extra") / "extra.npz"
    np.savez(path, image=np.arange(5 * 36, dtype=np.uint8).reshape(5, 6, 6), label=np.arange(5) % 3)
    return {"path": str(path)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", x=np.zeros((5, 6, 6, 3), np.uint8), y=np.arange(5) % 3)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return str(testing.run_recipe({}, tmp_path_factory.mktemp("trained") / "run").folder)


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("plugin", Catalogue().names())
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, plugin, extra_images, images, trained):
    files = {
        "extra_data": extra_images,
        "images": {"path": images},
        "hat": {"helper": trained},
        "start_from": {"weights": trained},
        "distillation": {"standard_teacher": trained, "robust_teacher": trained},
    }
    check(plugin, files.get(plugin, OPTIONS.get(plugin)))


# --- and the contract is broken by those who should break it ----------------------------------------------------------


@dataclass(eq=False)
class DrawsData:
    """Other images at every call."""

    @hookimpl
    def build_data(self):
        images = Images(torch.from_numpy(np.random.default_rng().integers(0, 256, (24, 1, 6, 6), np.uint8)), LABELS)
        return Data(images, images, 3)


@dataclass(eq=False)
class FailsToBuild:
    """No network."""

    @hookimpl
    def build_model(self):
        raise RuntimeError("no")


LABELS = torch.arange(24) % 3


@pytest.mark.parametrize(
    ("plugin", "error"), [(DrawsData, AssertionError), (FailsToBuild, RuntimeError)], ids=["data", "model"]
)
def test_data_and_models_are_built_twice_alike(plugin, error):
    with pytest.raises(error):
        testing.gives_the_same_numbers_twice(plugin)


@dataclass(eq=False)
class Forgets:
    """Its decay grows from step to step, and no checkpoint knows."""

    off: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        self.steps = 0

    @hookimpl
    @torch.no_grad()
    def after_step(self, run):
        self.steps += 1
        for p in run.network.parameters():
            p.mul_(1 - 0.01 * self.steps)


@dataclass(eq=False)
class Leaves:
    """Takes the weights back from where it moved them only where nothing was raised there."""

    @hookimpl(wrapper=True)
    def gradients(self, run):
        before = [p.detach().clone() for p in run.network.parameters()]
        for p in run.network.parameters():
            p.data.mul_(1.01)
        loss = yield
        for p, value in zip(run.network.parameters(), before, strict=True):
            p.data.copy_(value)
        return loss


@dataclass(eq=False)
class Draws:
    """Its decay comes from no seed."""

    @hookimpl
    @torch.no_grad()
    def after_step(self, run):
        for p in run.network.parameters():
            p.mul_(1 - 0.01 * random.SystemRandom().random())


@dataclass(eq=False)
class DrawsForAll:
    """Its noise is from the generator that a network's dropout draws from too."""

    @hookimpl
    def extra_loss(self, batch):
        return 0.01 * torch.rand_like(batch.x).mean()


@dataclass(eq=False)
class StepsBack:
    """A measure that leaves the gradients it measured."""

    @hookimpl
    def measure(self, subject):
        x, y, _ = next(iter(subject.examples))
        with in_mode(subject.model, False):
            torch.nn.functional.cross_entropy(subject.model(x), y).backward()
        return {"steps_back": float(next(subject.model.parameters()).grad.norm())}


@dataclass(eq=False)
class KeepsAnArray:
    """What a checkpoint cannot hold."""

    @hookimpl
    def epoch_end(self):
        pass

    def state_dict(self):
        return {"mine": np.zeros(3)}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("plugin", "check", "told"),
    [
        (DrawsForAll, testing.leaves_the_network_as_found, "draws from torch's global generator"),
        (StepsBack, testing.leaves_the_network_as_found, "gradients are left at the weights"),
        (Draws, testing.gives_the_same_numbers_twice, "different weights"),
        (Forgets, testing.resumes_as_if_never_stopped, "different weights"),
        (Forgets, testing.switched_off_equals_no_plugin, "different weights"),
        (Leaves, testing.leaves_the_network_as_found, "weights or buffers moved"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_told(plugin, check, told):
    with pytest.raises(AssertionError, match=told):
        check(plugin)


def test_a_training_that_fails_in_a_check_says_why():
    with pytest.raises(TrainingFailed, match="the state of plugin 'keeps_an_array' could not"):
        testing.resumes_as_if_never_stopped(KeepsAnArray)
