"""Sets that are read when they are wanted: the same batches, resume and processes as in memory."""

import os
import signal
from dataclasses import dataclass

import pytest
import torch
from image_files import parquet, pictures, png
from processes import finished
from safetensors.torch import load_file

from hookflat import TrainingFailed, UserError, hookimpl
from hookflat.errors import Stopped
from hookflat.reading import streams
from hookflat.testing import run_recipe, tiny_run


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    monkeypatch.setattr(streams, "_workers", lambda: 1)


OPTIONS = {"name": "images", "label": "label", "size": 6}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Pictures of several sizes, 28 to train on and 12 to test."""
    folder = tmp_path_factory.mktemp("streamed")
    splits = {}
    for split, count in (("train", 28), ("test", 12)):
        x, y = pictures(count, size=9, classes=3)
        splits[split] = [png(p[: 7 + i % 3]) for i, p in enumerate(x)], y
    return parquet(folder, **splits)


def tables(path, stream=True, **more):
    return {"data": OPTIONS | {"path": str(path), "stream": stream}, "run": {"epochs": 2, "batch_size": 8} | more}


def test_batches_statistics_and_measured_examples_are_those_in_memory(path):
    early = {"plugins": {"early_stopping": {"holdout": 3}}}
    with tiny_run(tables(path) | early) as run, tiny_run(tables(path, stream=False) | early) as other:
        for streamed, kept in zip(run.batches(), other.batches(), strict=True):
            for name in ("x", "y", "index", "row"):
                assert torch.equal(getattr(streamed, name), getattr(kept, name))
        for a, b in zip(run.data.train.statistics(), other.data.train.statistics(), strict=True):
            assert torch.equal(a, b)
        for which, count in (("first", 9), ("last", 11)):
            taken = [data.taken("test", count, which) for data in (run.data, other.data)]
            a, b = (images.__getitems__(torch.arange(count)) for images in taken)
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
        assert run.data.train.part(0, 9).content()[0] != run.data.train.part(1, 10).content()[0]
        with pytest.raises(UserError, match=r"set data.stream = false"):
            _ = run.data.train.x


def test_a_stream_draws_nothing_from_the_global_generator(path):
    with tiny_run(tables(path)) as run:
        images, order = run.data.train, torch.arange(28).split(4)
        torch.manual_seed(3)
        for _ in images.batches(order):
            pass
        drawn = torch.rand(())
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(()))


@dataclass(eq=False)
class Stop:
    """Ends the training once, in the middle of the second epoch."""

    armed = True

    @hookimpl
    def after_step(self, run):
        if run.step == 7 and Stop.armed:  # one after the checkpoint in the middle of the epoch
            Stop.armed = False
            raise Stopped(signal.SIGINT)


def test_a_streamed_run_that_was_stopped_goes_on_bit_for_bit(path, tmp_path):
    stop = {"plugins": {"stop": {}}}
    Stop.armed = True
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tables(path, checkpoint_steps=3) | stop, tmp_path / "stopped", [Stop])
    run_recipe(tables(path, checkpoint_steps=3) | stop, tmp_path / "stopped", [Stop])
    run_recipe(tables(path, stream=False, checkpoint_steps=3) | stop, tmp_path / "memory", [Stop])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "memory"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_is_left_to_read_at_the_end_of_an_epoch(path):
    """Where a run goes on that stopped there."""
    with tiny_run(tables(path)) as run:
        run.step = run.steps_per_epoch  # of epoch 0
        assert list(run.batches()) == []


LABEL = ', label = "label"'
RECIPE = """
data = {{ name = "images", path = "{path}", size = 8{label}, stream = {stream} }}
model = {{ name = "resnet_small", width = 8, norm = "group" }}
optimizer = {{ name = "sgd" }}
schedule = {{ name = "multistep" }}
attack = {{ name = "pgd", eps = 0.1, step_size = 0.05, steps = 1 }}
loss = {{ name = "at" }}
run = {{ epochs = 1, batch_size = 8, threads = 1 }}
eval = {{ final = {{ examples = 9, clean_error = {{}} }} }}
{plugins}
"""


def trained(folder, name, processes, **options):
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(**{"plugins": "", "stream": "false", "label": ""} | options))
    done = finished(folder / f"{name}.said", "run", recipe, "--out", folder / name, processes=processes)
    assert done.returncode == 0, done.stderr
    return load_file(folder / name / "model.safetensors")


def test_two_processes_stream_what_one_has_in_memory(path, tmp_path):
    one = trained(tmp_path, "one", 1, path=path, label=LABEL)
    two = trained(tmp_path, "two", 2, path=path, stream="true", label=LABEL)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name


@pytest.mark.parametrize("row", [0, 20])
def test_an_image_that_cannot_be_read_is_told_by_its_row(tmp_path, row):
    x, y = pictures(24, size=6, classes=3)
    files = [png(p) for p in x]
    parquet(tmp_path, train=([*files[:row], b"no image", *files[row + 1 :]], y), test=(files, y))
    told = pytest.raises(UserError, match=rf"split 'train': row {row} \({row}.png\) is no image")
    with told, tiny_run(tables(tmp_path)) as run:
        list(run.batches())


def test_unequal_sizes_are_told_where_nothing_makes_them_equal(path):
    told = pytest.raises(UserError, match=r"of several sizes or kinds: row 1 .* set data.size")
    with told, tiny_run({"data": OPTIONS | {"path": str(path), "size": 0, "stream": True}}):
        pass


def test_a_worker_that_ends_is_told(monkeypatch):
    monkeypatch.setattr(streams.ImageSet, "read", lambda *_: os._exit(9))
    stream = streams.ImageStream(streams.ImageSet("here", None), "img", None, "", (3, 6, 6))
    with pytest.raises(TrainingFailed, match="a process that reads images ended"):
        list(stream.levels(torch.arange(8).split(4)))
