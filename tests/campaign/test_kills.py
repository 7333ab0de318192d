"""SIGKILL at any moment: whatever touches a file of the run, and every forward pass, is one."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from faults import kill, moments
from processes import start

from hookflat.testing import run_recipe

STOPPING = {"holdout": 6, "every": 1, "steps": 1}
BASE = {"run": {"epochs": 2, "checkpoint_steps": 2}, "plugins": {"early_stopping": STOPPING}}
RECIPES = {
    "awp": {"plugins": {"awp": {}}},
    "averaging": {"plugins": {"averaging": {"decay": 0.5}}},
    "entropy_sgd": {"optimizer": {"name": "entropy_sgd", "langevin_steps": 2}, "schedule": {"name": "multistep"}},
    "self_supervision": {"plugins": {"self_supervision": {"hidden": 0}}},
    "unlabeled": {"loss": {"name": "uat", "targets": "ot"}, "plugins": {"unlabeled": {"share": 0.5, "fraction": 0.4}}},
    "bf16": {"run": {"precision": "bf16"}},
    "two processes": {"plugins": {"awp": {}}},
}
ENDS = (signal.SIGKILL, 3, signal.SIGTERM)
"""The killed one; another one that noticed, or that was ended because one was killed, as launchers do."""
FILES = ("model.safetensors", "checkpoints/best.safetensors", "metrics.jsonl")


def tables(name):
    """BASE with a recipe laid over it."""
    laid = {key: dict(value) for key, value in BASE.items()}
    for key, value in RECIPES[name].items():
        laid[key] = laid.get(key, {}) | value
    return laid


MOMENTS = {
    "in the first checkpoint": (0, "open", "checkpoints.save", ""),
    "between an epoch's last step and its measures": (0, "open", "epochs.end_epoch", ""),
    "in an epoch's measures": (1, "forward pass", "measuring.stage", ""),
    "while writing": (0, "fsync", "checkpoints.save", "epochs.end_epoch"),
    "while renaming": (0, "os.rename", "checkpoints.save", "epochs.end_epoch"),
    "between epochs": (1, "forward pass", "loop.step", "epochs.end_epoch"),
    "in the final measures": (1, "forward pass", "measuring.end", ""),
    "while the results are written": (0, "os.rename", "folder.save_results", ""),
}
"""The process that is killed where there are two, what happens, in which function, after which one; in the order in
which a run that is killed at one, and goes on, comes to the next."""


class Named:
    """Whether a moment is the one of a name."""

    def __init__(self, name):
        _, self.what, self.inside, self.after = MOMENTS[name]
        self.been = {""}

    def __call__(self, what):
        frame, functions = sys._getframe(), set()
        while frame := frame.f_back:
            functions.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        self.been |= functions - {self.inside}
        return what.startswith(self.what) and self.inside in functions and self.after in self.been - functions


def train(name, folder, at):
    """The recipe in this process, which is killed at a moment (0: not); the number of moments goes to a file beside."""
    victim = MOMENTS[at][0] if at in MOMENTS else at % int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    mine = rank == victim or "WORLD_SIZE" not in os.environ
    chosen = 0 if not mine else Named(at) if at in MOMENTS else at
    with moments(folder.parent, chosen, kill, passes=True) as tally:
        run_recipe(tables(name), folder)
    if rank == 0:
        folder.with_suffix(".moments").write_text(str(tally.seen))


def session(name, folder, at):
    """The exit code of a session of its own, and what it said."""
    said = folder.with_name(f"{folder.name}.said")
    processes = 2 if name == "two processes" else 1
    started = start(said, call=lambda: train(name, folder, at), processes=processes)
    return started.wait(), started.said("err")


def never_killed(name, place):
    """The folder of a run that was never disturbed, and how many moments it had."""
    place.mkdir()
    code, said = session(name, place / "run", 0)
    assert code == 0, said
    return place / "run", int((place / "run.moments").read_text())


def killed(name, whole, place, chosen):
    """(kills, what is wrong): a run is killed at every chosen moment on its way, and compared with `whole`.

    A moment is a name, or the number of one of that session, which goes on from where the last was killed.
    """
    place.mkdir()
    folder, kills, wrong = place / "run", 0, []
    for at in chosen:
        code, said = session(name, folder, at)
        if code:
            kills += 1
            wrong += [f"{name}, killed at {at}: exit code {code}, {said[-1000:]}"] if code not in ENDS else []
        elif at in MOMENTS:
            wrong.append(f"{name}: no moment was {at!r}")
    code, said = session(name, folder, 0)
    if code:
        return kills, [*wrong, f"{name}: after kills at {chosen} exit code {code}, {said[-1000:]}"]
    return kills, wrong + [f"{name}, killed at {chosen}: another {what}" for what in differences(whole, folder)]


def differences(whole, folder):
    """The files and the numbers in which a run is not as one that was never disturbed."""
    other = [name for name in FILES if (whole / name).read_bytes() != (folder / name).read_bytes()]
    ours, theirs = (json.loads((f / "eval.json").read_text())["models"] for f in (whole, folder))
    return other + [m for m in ours for split in ("test", "train") if ours[m].get(split) != theirs[m].get(split)]


@pytest.mark.parametrize("name", RECIPES)
def test_kills(name, tmp_path, tally):
    whole, count = never_killed(name, tmp_path / "whole")
    kills, wrong = killed(name, whole, tmp_path / "named", list(MOMENTS))
    tally(f"SIGKILLs at {len(MOMENTS)} named moments, {name}", kills, wrong)
    rng = random.Random(name)
    kills, wrong = killed(name, whole, tmp_path / "any", [rng.randint(1, count // 2) for _ in range(3)])
    tally(f"SIGKILLs at any moment, {name}", kills, wrong)
