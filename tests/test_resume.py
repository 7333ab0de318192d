"""A run that is killed at any moment and started again ends as if never stopped, bit for bit."""

import json
import random
import time

import pytest
from processes import start as processes_of

from hookflat import UserError
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import checkpoints, loop
from hookflat.training.epochs import end_epoch

RECIPE = """
data = { name = "digits", train = 64, test = 60 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "entropy_sgd", langevin_steps = 3 }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 3 }
loss = { name = "trades" }
run = { epochs = 4, batch_size = 8, threads = 1, checkpoint_steps = 3 }
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


def start(recipe, folder, processes=1):
    said = folder.with_name(f"{folder.name}.said")
    return processes_of(said, "run", recipe, "--out", folder, processes=processes)


def steps_done(folder):
    return max((int(p.name[5:14]) for p in folder.glob("checkpoints/step-*")), default=0)


def test_killed_and_started_again_a_run_ends_as_if_never_stopped(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(recipe, whole)
    rng, kills = random.Random(0), 0
    for target in (4, 13, 22):  # in the middle of epochs of 8 steps
        process = start(recipe, killed)
        while process.poll() is None and steps_done(killed) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills >= 3
    last = start(recipe, killed)
    for process in (undisturbed, last):
        assert process.wait() == 0, process.said("err")[-2000:]
    weights = ("model.safetensors", "model_in_training.safetensors", "checkpoints/best.safetensors")
    for name in (*weights, "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    a, b = (json.loads((f / "eval.json").read_text())["models"] for f in (whole, killed))
    for model in ("last", "best"):
        assert a[model]["test"] == b[model]["test"]
        assert a[model]["epoch"] == b[model]["epoch"]


def test_two_processes_resume_as_exactly(tmp_path):
    """With batch norm: the running statistics of every process must come back."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("epochs = 4", "epochs = 2"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(recipe, killed, 2)
    while first.poll() is None and steps_done(killed) < 3:
        time.sleep(0.005)
    first.kill()
    first.wait()
    assert 0 < steps_done(killed) < 16
    for folder in (whole, killed):
        process = start(recipe, folder, 2)
        assert process.wait() == 0, process.said("err")[-2000:]
    for name in ("model.safetensors", "model_in_training.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_a_checkpoint_between_the_last_step_and_the_measures_of_an_epoch(tmp_path):
    whole = run_recipe({}, tmp_path / "whole")
    with tiny_run({}) as stopped:
        for batch in stopped.batches():
            loop.step(stopped, batch)
        checkpoints.save(stopped)
        resumed = run_recipe({}, stopped.folder.path)
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes(), name


def test_lines_after_the_checkpoint_are_written_again(tmp_path):
    whole = run_recipe({}, tmp_path / "whole")
    with tiny_run({}) as stopped:
        for batch in stopped.batches():
            loop.step(stopped, batch)
        end_epoch(stopped)
        checkpoints.save(stopped)
        stopped.folder.append({"epoch": 2, "step": 5, "stage": "curves", "split": "test", "rloss": 0.0})
        resumed = run_recipe({}, stopped.folder.path)
        assert (resumed.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


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
    assert "holds the run of another recipe (optimizer.lr: 0.1 in the folder, 0.2 now)" in str(caught.value)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_run_that_never_began_does_not_keep_its_folder(tmp_path):
    with pytest.raises(UserError, match="cannot hold out"):
        run_recipe({"plugins": {"early_stopping": {"holdout": 12}}}, tmp_path / "run")
    run_recipe({"plugins": {"early_stopping": {"holdout": 3}}}, tmp_path / "run")


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
