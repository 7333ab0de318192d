"""SIGKILL at any moment: whatever touches a file of the run, and every forward pass, is one."""

import json
import os
import random

import pytest
from faults import kill, moments
from processes import start

from hookflat.testing import run_recipe

STOPPING = {"holdout": 6, "every": 1, "steps": 1}
BASE = {"run": {"epochs": 2, "checkpoint_steps": 2}, "plugins": {"early_stopping": STOPPING}}
RECIPES = {
    "awp": {"plugins": {"awp": {}}},
    "averaging": {"plugins": {"averaging": {"decay": 0.5}, "swa": {"start": 0.5}}},
    "entropy_sgd": {"optimizer": {"name": "entropy_sgd", "langevin_steps": 2}, "schedule": {"name": "multistep"}},
    "self_supervision": {"plugins": {"self_supervision": {"hidden": 0}}},
    "unlabeled": {"loss": {"name": "uat", "targets": "ot"}, "plugins": {"unlabeled": {"share": 0.5, "fraction": 0.4}}},
    "bf16": {"run": {"precision": "bf16"}},
    "two processes": {"plugins": {"awp": {}}},
}
FILES = ("model.safetensors", "checkpoints/best.safetensors", "metrics.jsonl")


def tables(name):
    """BASE with a recipe laid over it."""
    laid = {key: dict(value) for key, value in BASE.items()}
    for key, value in RECIPES[name].items():
        laid[key] = laid.get(key, {}) | value
    return laid


def train(name, folder, at, victim=0):
    """The recipe in this process, which is killed at a moment (0: not); the number of moments goes to a file beside."""
    rank = int(os.environ.get("RANK", "0"))
    with moments(folder.parent, at if rank == victim else 0, kill, passes=True) as found:
        run_recipe(tables(name), folder)
    if rank == 0:
        folder.with_suffix(".moments").write_text(str(found.seen))


def session(name, folder, at):
    """The exit code of a session of its own, and what it said."""
    processes = 2 if name == "two processes" else 1
    victim = at % processes
    said = folder.with_name(f"{folder.name}.said")
    started = start(said, call=lambda: train(name, folder, at, victim), processes=processes)
    return started.wait(), started.said("err")


def chain(name, place, seed, kills):
    """(kills, what is wrong): a run is killed `kills` times on its way, and compared with one that never was."""
    (place / "whole").mkdir(parents=True)
    (place / "killed").mkdir()
    whole, killed = place / "whole" / "run", place / "killed" / "run"
    code, said = session(name, whole, 0)
    if code:
        return 0, [f"{name}: {said[-1000:]}"]
    total = int(whole.with_suffix(".moments").read_text())
    rng, done, wrong = random.Random(f"{seed} {name}"), 0, []
    for _ in range(kills):
        at = rng.randint(1, max(2, total // 2))  # of this session, which goes on from where the last was killed
        code, said = session(name, killed, at)
        done += code != 0
        if not code:
            break
        if code not in (9, 3):
            wrong.append(f"{name}, killed at {at} of {total}: exit code {code}, {said[-1000:]}")
    code, said = session(name, killed, 0)
    if code:
        return done, [*wrong, f"{name}: after {done} kills exit code {code}, {said[-1000:]}"]
    return done, wrong + [f"{name}: another {what}" for what in differences(whole, killed)]


def differences(whole, folder):
    """The files and the numbers in which a run is not as one that was never disturbed."""
    found = [name for name in FILES if (whole / name).read_bytes() != (folder / name).read_bytes()]
    ours, theirs = (json.loads((f / "eval.json").read_text())["models"] for f in (whole, folder))
    return found + [m for m in ours for split in ("test", "train") if ours[m].get(split) != theirs[m].get(split)]


@pytest.mark.parametrize("name", RECIPES)
def test_kills(name, tmp_path, tally):
    tried, failures, seed = 0, [], 0
    while tried < 8:
        kills, found = chain(name, tmp_path / str(seed), seed, 4)
        tried, failures, seed = tried + kills, failures + found, seed + 1
        if not kills:
            break
    tally(f"SIGKILLs at any moment, {name}", tried, failures)
