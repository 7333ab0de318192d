"""A run that is killed at any moment and started again ends as if never stopped, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from hookflat import UserError
from hookflat.testing import run_recipe

RECIPE = """
data = { name = "digits", train = 64, test = 60 }
model = { name = "resnet_small", width = 4 }
optimizer = { name = "entropy_sgd", langevin_steps = 3 }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 3 }
loss = { name = "trades" }
run = { epochs = 6, batch_size = 8, threads = 1, checkpoint_steps = 3 }
[plugins.awp]
[plugins.label_noise]
[plugins.augment]
padding = 1
[plugins.averaging]
decay = 0.9
[plugins.early_stopping]
holdout = 20
every = 1
steps = 1
restarts = 1
[eval.curves]
every = 1
[eval.curves.robust_loss]
steps = 2
restarts = 1
[eval.final.clean_error]
"""


def start(recipe, folder):
    command = [sys.executable, "-m", "hookflat", "run", str(recipe), "--out", str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


def steps_done(folder):
    return max((int(p.name[5:14]) for p in folder.glob("checkpoints/step-*")), default=0)


def test_killed_and_started_again_a_run_ends_as_if_never_stopped(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(recipe, whole)
    rng, kills = random.Random(0), 0
    for target in (4, 17, 30, 44):  # in the middle of epochs of 8 steps
        process = start(recipe, killed)
        while process.poll() is None and steps_done(killed) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    last = start(recipe, killed)
    for process in (undisturbed, last):
        assert process.wait(timeout=120) == 0, process.stderr.read().decode()[-2000:]
    weights = ("model.safetensors", "model_in_training.safetensors", "checkpoints/best.safetensors")
    for name in (*weights, "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    a, b = (json.loads((f / "eval.json").read_text())["models"] for f in (whole, killed))
    for model in ("last", "best"):
        assert a[model]["test"] == b[model]["test"]
        assert a[model]["epoch"] == b[model]["epoch"]


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run_recipe({}, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*.safetensors")}
    again = run_recipe({}, tmp_path / "run")
    assert again.results == first.results
    assert before == {p: p.stat().st_mtime_ns for p in first.folder.rglob("*.safetensors")}


def test_another_recipe_does_not_touch_the_folder(tmp_path):
    run_recipe({}, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        run_recipe({"optimizer": {"lr": 0.2}}, tmp_path / "run")
    assert "holds the run of another recipe (-lr = 0.1; +lr = 0.2)" in str(caught.value)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_checkpoint_that_was_being_written_is_ignored(tmp_path):
    whole = run_recipe({}, tmp_path / "whole")
    folder = tmp_path / "run"
    half = folder / "checkpoints" / ".writing"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half of it")
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "st')
    run_recipe({}, folder)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
