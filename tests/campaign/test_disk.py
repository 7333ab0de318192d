"""A disk that is full, fails, is read-only or over its quota, at every write in turn."""

import errno
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from itertools import count

import pytest
from faults import moments

from hookflat import TrainingFailed, UserError, evaluate
from hookflat.testing import TinyData, TinyModel, run_recipe

TABLES = {
    "run": {"epochs": 2, "checkpoint_steps": 2},
    "plugins": {"figures": {}, "snapshots": {"every": 1}, "early_stopping": {"holdout": 6, "every": 1, "steps": 1}},
    "eval": {"final": {"landscape": {"directions": 1, "points": 3}}},
}
ERRORS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full",
    errno.EIO: "the disk does not answer",
    errno.ESTALE: "the disk does not answer",
    errno.EROFS: "read-only",
}
PARTS = 6
"""The writes of a training are tried in so many tests, since each write is two trainings."""
WEIGHTS = ("model.safetensors", "checkpoints/best.safetensors", "checkpoints/epoch-000001.safetensors", "metrics.jsonl")


def train(folder):
    return run_recipe(TABLES, folder)


def differences(whole, folder):
    """The files in which a run is not as one that was never disturbed."""
    other = [name for name in WEIGHTS if (whole / name).read_bytes() != (folder / name).read_bytes()]
    ours, theirs = (json.loads((f / "eval.json").read_text())["models"] for f in (whole, folder))
    other += [m for m in ours for split in ("test", "train") if ours[m].get(split) != theirs[m].get(split)]
    kept = [p.relative_to(whole) for part in ("figures", "tables") for p in (whole / part).iterdir()]
    return other + [str(name) for name in kept if not (folder / name).exists()]


def failing(whole, folder, at, number):
    """What is wrong with how work ends whose write `at` fails, and with the same work after it; None: no such write."""

    def fail(what):
        raise OSError(number, os.strerror(number), what.partition(" ")[2])

    said = ""
    with moments(folder, at, fail) as tally:
        try:
            train(folder)
        except (TrainingFailed, UserError) as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    if not tally.what:
        return None
    faults = [] if not said or ERRORS[number] in said or "cannot write the run's folder" in said else [f"said {said!r}"]
    train(folder)
    return [f"{errno.errorcode[number]} at write {at} ({tally.what}): {f}" for f in faults + differences(whole, folder)]


@pytest.fixture(autouse=True)
def empty_figures(monkeypatch):
    """Drawing takes most of the time of a run as small as these; the files are written as ever."""
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)


@contextmanager
def disk(place, kilobytes):
    """A file system of that size in the memory; to grow with `grown`."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def grown(place):
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)


def filled(whole, place, kilobytes):
    """What is wrong with how a run ends on a disk of that size, and with the same command once it has room."""
    with disk(place, kilobytes):
        said = ""
        try:
            train(place / "run")
        except (TrainingFailed, UserError) as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if not said:
            return None
        faults = [] if said.startswith("disk full") else [f"said {said!r}"]
        grown(place)
        train(place / "run")
        return [f"{kilobytes} kB: {fault}" for fault in faults + differences(whole, place / "run")]


@pytest.mark.parametrize("first", range(1, PARTS + 1))
def test_every_write_that_fails(first, tmp_path, tally):
    whole = train(tmp_path / "whole").folder
    tried, failures = 0, []
    for at in count(first, PARTS):
        number = list(ERRORS)[at % len(ERRORS)]
        outcome = failing(whole, tmp_path / "run", at, number)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if outcome is None:
            break
        tried, failures = tried + 1, failures + outcome
    what = "writes of a training that fail: full, quota, EIO, stale, read-only"
    tally(f"{what}; every {PARTS}th from number {first}", tried, failures)


def test_every_write_of_an_evaluation_that_fails(tmp_path, tally):
    trained = train(tmp_path / "trained").folder
    protocol = tmp_path / "p.toml"
    protocol.write_text("[eval.only]\n[eval.only.robust_loss]\nsteps = 1\nrestarts = 1\n[eval.only.clean_error]\n")

    def measure(folder):
        return evaluate(trained, protocol=protocol, folder=folder, plugins=[TinyData, TinyModel])

    whole = measure(tmp_path / "whole").results.models["last"].test
    tried, failures = 0, []
    for at in count(1):
        folder, number = tmp_path / f"eval{at}", list(ERRORS)[at % len(ERRORS)]

        def fail(what, number=number):
            raise OSError(number, os.strerror(number), what.partition(" ")[2])

        said = ""
        with moments(folder, at, fail) as seen:
            try:
                measure(folder)
            except (TrainingFailed, UserError) as error:
                said = str(error)
            except Exception as error:
                failures.append(f"write {at} ({seen.what}): {type(error).__name__}: {error}")
        if not seen.what:
            break
        if said and ERRORS[number] not in said and "cannot write the run's folder" not in said:
            failures.append(f"write {at} ({seen.what}): said {said!r}")
        if measure(folder).results.models["last"].test != whole:
            failures.append(f"write {at}: other numbers")
        tried += 1
    tally("writes of `hookflat eval` that fail", tried, failures)


def test_a_disk_of_every_size(tmp_path, tally):
    whole = train(tmp_path / "whole").folder
    tried, failures = 0, []
    for kilobytes in count(4, 8):
        outcome = filled(whole, tmp_path / f"disk{kilobytes}", kilobytes)
        if outcome is None:
            break
        tried, failures = tried + 1, failures + outcome
    tally("disks that are full in a training, 4 kB to what it needs", tried, failures)
