"""A run that is killed at any moment and started again ends as if never stopped, bit for bit."""

import hashlib
import json
import os
import random
import shutil
import time
from dataclasses import dataclass

import pytest
import torch
from processes import start as processes_of
from safetensors.torch import load_file, save_file

from hookflat import TrainingFailed, UserError, hookimpl, load_recipe, network_of
from hookflat.recipe.catalogue import Catalogue
from hookflat.testing import TinyData, TinyModel, recipe, run_recipe, tiny_run
from hookflat.training import checkpoints, entry, loop
from hookflat.training.epochs import end_epoch

RECIPE = """
data = { name = "digits", train = 64, test = 30 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "entropy_sgd", langevin_steps = 2 }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
loss = { name = "trades" }
run = { epochs = 2, batch_size = 8, threads = 1, checkpoint_steps = 3 }
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
steps = 1
restarts = 1
[eval.final.clean_error]
"""


def start(recipe, folder, processes=1):
    said = folder.with_name(f"{folder.name}.said")
    return processes_of(said, "run", recipe, "--out", folder, processes=processes)


def steps_done(folder):
    return max((int(p.name[5:14]) for p in folder.glob("checkpoints/step-*")), default=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_recipe({}, tmp_path_factory.mktemp("whole") / "run").folder


def test_killed_and_started_again_a_run_ends_as_if_never_stopped(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(recipe, whole)
    rng, kills = random.Random(0), 0
    for target in (4, 9):  # in the middle of epochs of 8 steps
        process = start(recipe, killed)
        while process.poll() is None and steps_done(killed) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills == 2
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
    recipe.write_text(RECIPE)
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


def test_a_checkpoint_between_the_last_step_and_the_measures_of_an_epoch(whole, tmp_path):
    with tiny_run({}) as stopped:
        for batch in stopped.batches():
            loop.step(stopped, batch)
        checkpoints.save(stopped)
        resumed = run_recipe({}, stopped.folder.path)
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (whole / name).read_bytes() == (resumed.folder / name).read_bytes(), name


def test_lines_after_the_checkpoint_are_written_again(whole, tmp_path):
    with tiny_run({}) as stopped:
        for batch in stopped.batches():
            loop.step(stopped, batch)
        end_epoch(stopped)
        checkpoints.save(stopped)
        stopped.folder.append({"epoch": 2, "step": 5, "stage": "curves", "split": "test", "rloss": 0.0})
        resumed = run_recipe({}, stopped.folder.path)
        assert (resumed.folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


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


def test_a_checkpoint_that_was_being_written_is_ignored(whole, tmp_path):
    folder = tmp_path / "run"
    half = folder / "checkpoints" / ".writing"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half of it")
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "st')
    run_recipe({}, folder)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped in its last step but one, with the checkpoints of steps 3 and 4."""
    folder, step = tmp_path_factory.mktemp("begun") / "run", loop.step

    def stopping(run, batch):
        if run.step == 4:
            raise KeyboardInterrupt
        return step(run, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_recipe({"run": {"checkpoint_steps": 2}}, folder)
    return folder


def copied(folder, place):
    shutil.copytree(folder, place)
    return place, sorted(place.glob("checkpoints/step-*"))


def test_other_examples_do_not_go_on_where_the_first_ones_stopped(begun, tmp_path):
    place, _ = copied(begun, tmp_path / "run")
    record = json.loads((place / "data.json").read_text())
    record["test"]["fingerprint"] = "0" * 16  # it was of other images
    (place / "data.json").write_text(json.dumps(record))
    before = {f: f.read_bytes() for f in place.rglob("*") if f.is_file() and f.name != ".lock"}
    with pytest.raises(UserError, match=f"was begun with other test examples .fingerprint {'0' * 16}"):
        again(place)
    assert all(f.read_bytes() == content for f, content in before.items() if f.name != "environment.json")
    (place / "data.json").write_text("{")
    again(place)
    assert json.loads((place / "data.json").read_text())["test"]["fingerprint"] != "0" * 16


def again(folder):
    return entry.run(
        recipe({"run": {"checkpoint_steps": 2}}), folder=folder, plugins=[TinyData, TinyModel], quiet=False
    )


def is_whole(folder, whole):
    return all((folder / n).read_bytes() == (whole / n).read_bytes() for n in ("model.safetensors", "metrics.jsonl"))


def flip(file, bit=1000):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name"),
    [(flip, "model.safetensors"), (flip, "training.pt"), (flip, "SHA256SUMS"), (os.unlink, "training.pt")],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(begun, whole, tmp_path, capsys, name, damage):
    folder, (older, newer) = copied(begun, tmp_path / "run")
    damage(newer / name)
    again(folder)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{newer} cannot be used: " in said
    assert f"going on from the one before it, {older.name}" in said
    assert is_whole(folder, whole)


def test_without_a_whole_checkpoint_nothing_is_touched(begun, tmp_path):
    folder, checkpoints = copied(begun, tmp_path / "run")
    for checkpoint in checkpoints:
        flip(checkpoint / "training.pt")
    before = {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    with pytest.raises(UserError) as told:
        again(folder)
    for checkpoint in checkpoints:
        assert f"{checkpoint} cannot be used: the checksum of training.pt is not the one in SHA256SUMS" in str(
            told.value
        )
    assert "remove it to train from the beginning" in str(told.value)
    assert before == {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}


def test_two_checkpoints_are_kept_with_the_sums_that_sha256sum_reads(begun):
    checkpoints = sorted(begun.glob("checkpoints/*"))
    assert [c.name for c in checkpoints] == ["step-000000003-epoch-000001", "step-000000004-epoch-000001"]
    for checkpoint in checkpoints:
        sums = dict(line.split("  ")[::-1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines())
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in checkpoint.iterdir() if p.name in sums}
        assert sums == files
        assert {p.name for p in checkpoint.iterdir()} == {*sums, "SHA256SUMS"}


def test_an_earlier_hookflat_s_checkpoint_is_refused(begun, tmp_path):
    folder, (older, newer) = copied(begun, tmp_path / "run")
    shutil.rmtree(older)
    (newer / "training.pt").rename(newer / "hookflat.pt")
    with pytest.raises(UserError, match="an earlier hookflat wrote it, which this one does not read"):
        again(folder)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch proof",)


def forged(checkpoint):
    """The checksums of a checkpoint are right again."""
    names = ("model.safetensors", "training.pt", "metrics.jsonl", "recipe.toml")
    sums = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(sums))


def test_no_code_in_a_checkpoint_is_run(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, (_, newer) = copied(begun, tmp_path / "run")
    torch.save({"step": Hostile()}, newer / "training.pt")
    forged(newer)
    with pytest.raises(UserError, match=f"{newer} does not hold the state of this run"):
        again(folder)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [3],
        lambda state: state | {"step": "x"},
        lambda state: state | {"step": 10**9},
        lambda state: state | {"optimizer": {"state": {0: {"momentum_buffer": "x"}}, "param_groups": []}},
        lambda state: state | {"plugins": {"awp": {}}},
        lambda state: state | {"generators": [{"random": (3, (1, 2), None)}]},
        lambda state: {},
    ],
)
def test_a_stranger_s_checkpoint_that_holds_something_else_is_told(begun, tmp_path, change):
    folder, (_, newer) = copied(begun, tmp_path / "run")
    torch.save(change(torch.load(newer / "training.pt", weights_only=True)), newer / "training.pt")
    forged(newer)
    with pytest.raises(UserError, match=f"{newer} does not hold the state of this run: .+"):
        again(folder)


def test_weights_that_are_not_finite_are_not_trained_further(begun, tmp_path):
    folder, (_, newer) = copied(begun, tmp_path / "run")
    weights = load_file(newer / "model.safetensors")
    weights["net.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, newer / "model.safetensors")
    forged(newer)
    with pytest.raises(UserError, match=r"model.safetensors: 'net.0.weight' is not finite in 1 of its 36 values"):
        again(folder)


def test_a_complete_run_without_its_checkpoints_is_still_the_run_of_its_recipe(tmp_path):
    """They may be removed to save room."""
    folder = run_recipe({}, tmp_path / "run").folder
    shutil.rmtree(folder / "checkpoints")
    assert run_recipe({}, folder).results.models["last"].epoch == 2
    with pytest.raises(UserError, match="holds the run of another recipe"):
        run_recipe({"optimizer": {"lr": 0.7}}, folder)


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "is not finite in 1 of"), (None, "missing: net.0.weight")])
def test_a_network_of_a_run_is_whole_and_finite(whole, tmp_path, value, told):
    folder, _ = copied(whole, tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    weights["net.0.weight"][0, 0, 0, 0] = 0.5
    loaded = load_recipe(recipe(), catalogue=Catalogue([TinyData, TinyModel]))
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(network_of(loaded, folder).state_dict()["net.0.weight"], weights["net.0.weight"])
    if value is None:
        del weights["net.0.weight"]
    else:
        weights["net.0.weight"][0, 0, 0, 0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=told):
        network_of(loaded, folder)


def test_a_state_that_could_not_be_read_back_is_told_at_the_first_checkpoint(tmp_path):
    @dataclass(eq=False)
    class Keeps:
        def state_dict(self):
            return {"file": tmp_path}

        def load_state_dict(self, state): ...

        @hookimpl
        def after_step(self): ...

    with pytest.raises(TrainingFailed, match="the state of plugin 'keeps' could not be read back"):
        run_recipe({"plugins": {"keeps": {}}, "run": {"checkpoint_steps": 1}}, tmp_path / "run", [Keeps])
    assert not list((tmp_path / "run").glob("checkpoints/step*"))


@pytest.mark.parametrize("left", [b'{"epoch": 1, "st', None, bytes(10_000)])
def test_metrics_that_are_shorter_than_at_the_checkpoint_come_back_from_it(begun, whole, tmp_path, capsys, left):
    folder, _ = copied(begun, tmp_path / "run")
    if left is None:
        (folder / "metrics.jsonl").unlink()
    else:
        (folder / "metrics.jsonl").write_bytes(left)
    again(folder)
    assert "metrics.jsonl was cut or changed: it is back as the checkpoint kept it" in capsys.readouterr().out
    assert is_whole(folder, whole)


@pytest.mark.parametrize("left", ["[run", None])
def test_a_recipe_that_is_lost_comes_back_from_the_checkpoint_and_still_guards_the_run(begun, whole, tmp_path, left):
    folder, _ = copied(begun, tmp_path / "run")
    (folder / "recipe.toml").unlink()
    if left is not None:
        (folder / "recipe.toml").write_text(left)
    with pytest.raises(UserError, match="holds the run of another recipe"):
        run_recipe({"optimizer": {"lr": 0.2}, "run": {"checkpoint_steps": 2}}, folder)
    again(folder)
    assert (folder / "recipe.toml").read_text() == (begun / "recipe.toml").read_text()
    assert is_whole(folder, whole)


@pytest.mark.parametrize("left", ["[" * 100_000, '{"models": 3}'])
def test_damaged_results_are_moved_aside_and_measured_again(whole, tmp_path, capsys, left):
    folder, _ = copied(whole, tmp_path / "run")
    (folder / "eval.json").write_text(left)
    again_whole = entry.run(recipe(), folder=folder, plugins=[TinyData, TinyModel], quiet=False)
    assert "eval.json" in capsys.readouterr().out
    assert (folder / "eval.json.damaged").read_text() == left
    numbers = json.loads((whole / "eval.json").read_text())["models"]["last"]["test"]
    assert again_whole.results.models["last"].test == numbers


def test_a_training_whose_last_batch_would_be_another_does_not_go_on_with_another_number_of_processes():
    with tiny_run({"model": {"norm": "group"}, "data": {"train": 27}}) as run:
        state = {"processes": 2, "step": 1, "batches": [3, 24]}
        with pytest.raises(UserError, match="had 3 batches with 24 examples there and has 4 with 27 here"):
            checkpoints.check_processes(run, state)
        checkpoints.check_processes(run, state | {"batches": [4, 27]})
