"""Damaged folders of runs: every file of one missing, empty, cut, with a flipped bit, binary, foreign, huge or deep."""

import io
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest

from hookflat import TrainingFailed, UserError, evaluate, report
from hookflat.reporting.comparing import compare
from hookflat.testing import TinyData, TinyModel, recipe, run_recipe
from hookflat.training import entry
from hookflat.training.epochs import end_epoch

FOREIGN = {
    ".json": b'{"models": [], "recipe": 3}',
    ".toml": b'[run]\nseed = "seven"\n',
    ".jsonl": b'[1, 2]\n"word"\n{"epoch": -1}\n{"epoch": 1e400}\n',
    ".safetensors": b'\x10\x00\x00\x00\x00\x00\x00\x00{"__metadata__":{',
}
DAMAGES = {
    "missing": lambda file, rng: file.unlink(),
    "empty": lambda file, rng: file.write_bytes(b""),
    "cut": lambda file, rng: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped": lambda file, rng: file.write_bytes(_flipped(file.read_bytes(), rng)),
    "binary": lambda file, rng: file.write_bytes(rng.randbytes(777)),
    "foreign": lambda file, rng: file.write_bytes(FOREIGN.get(file.suffix, b"something else")),
    "zeros": lambda file, rng: file.write_bytes(bytes(file.stat().st_size)),
    "deep": lambda file, rng: file.write_bytes(b"[" * 50_000),
    "nested": lambda file, rng: file.write_text('{"a":' * 500 + "1" + "}" * 500),
    "digits": lambda file, rng: file.write_text('{"epoch": 1, "models": ' + "7" * 400 + "}"),
    "longer": lambda file, rng: file.write_bytes(file.read_bytes() + b"\xff\xfe{"),
}
TRAINED = {"run": {"checkpoint_steps": 2}, "plugins": {"early_stopping": {"holdout": 6, "every": 1, "steps": 1}}}
PROTOCOL = "[eval.only]\n[eval.only.robust_loss]\nsteps = 1\nrestarts = 1\n[eval.only.clean_error]\n"


def _flipped(content, rng):
    if not content:
        return content
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


class StopError(Exception):
    pass


def begun(folder, monkeypatch):
    """A run that was stopped in its second epoch, with two checkpoints."""

    def ended(run):
        if run.epoch == 1:
            raise StopError
        return end_epoch(run)

    with monkeypatch.context() as patched:
        patched.setattr("hookflat.training.loop.end_epoch", ended)
        with pytest.raises(StopError):
            run_recipe(TRAINED, folder)
    return folder


def finished(folder, place):
    """A run that is trained and measured, also by a protocol."""
    run_recipe(TRAINED, folder)
    protocol = place / "only.toml"
    protocol.write_text(PROTOCOL)
    measure(folder, protocol)
    return folder, protocol


def measure(folder, protocol):
    return evaluate(folder, protocol=protocol, plugins=[TinyData, TinyModel])


def train(folder):
    return entry.run(recipe(TRAINED), folder=folder, plugins=[TinyData, TinyModel], quiet=False)


def files(folder):
    """All but locks; of two checkpoints, those of the newer."""
    older = sorted(folder.glob("checkpoints/step-*"))[:-1]
    there = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return sorted(p.relative_to(folder) for p in there if p.parent not in older)


def cases(folder, rng, count):
    """(file, damage): `count` of them, all files alike."""
    every = [(file, damage) for damage in DAMAGES for file in files(folder)]
    rng.shuffle(every)
    return every[:count]


def numbers(finished):
    """Of the network that was measured."""
    return finished.results.models["last"].test


def said_by(call, *arguments):
    """(what it said, whether it ended as it should): quietly, or with an error that is told."""
    out, told, good = io.StringIO(), "", True
    with redirect_stdout(out), redirect_stderr(out):
        try:
            call(*arguments)
        except (UserError, TrainingFailed) as error:
            told = f"\nerror: {error}"
        except Exception as error:
            told, good = f"\n{type(error).__name__}: {error}", False
    return out.getvalue() + told, good


def resumed(source, file, damage, folder, rng, whole):
    """What is wrong with how a damaged run that was stopped goes on: it ends as the whole one, or names a file."""
    shutil.copytree(source, folder)
    DAMAGES[damage](folder / file, rng)
    said, good = said_by(train, folder)
    named = f"run: {file} {damage}"
    if "error: " in said:
        return [] if good and (file.name in said or str(folder) in said) else [f"{named}: {said[-500:]}"]
    if not good:
        return [f"{named}: {said[-500:]}"]
    names = ("model.safetensors", "metrics.jsonl")
    return [f"{named}: another {name}" for name in names if (whole / name).read_bytes() != (folder / name).read_bytes()]


def read(source, file, damage, folder, rng, protocol):
    """What is wrong with how eval and compare take a damaged run that was finished."""
    shutil.copytree(source, folder)
    DAMAGES[damage](folder / file, rng)
    whole, wrong = numbers(measure(source, protocol)), []

    def same():
        if (measured := numbers(measure(folder, protocol))) != whole:
            raise ValueError(f"other numbers: {measured}, not {whole}")

    for name, call in (("eval", same), ("compare", lambda: compare([source, folder]))):
        said, good = said_by(call)
        if not good:
            wrong.append(f"{name}: {file} {damage}: {said[-500:]}")
        elif "error: " in said and file.name not in said and str(folder) not in said:
            wrong.append(f"{name}: {file} {damage}: does not name it: {said[-500:]}")
    return wrong


def reported(source, chosen, place, rng):
    """What is wrong with a report on a folder of damaged runs and a whole one."""
    shutil.copytree(source, place / "whole")
    for number, (file, damage) in enumerate(chosen):
        shutil.copytree(source, place / f"damaged{number}")
        DAMAGES[damage](place / f"damaged{number}" / file, rng)
    said, good = said_by(lambda: report([place], folder=place.with_name("page")))
    return [] if good and "error: " not in said else [f"report: {said[-1500:]}"]


def test_runs_that_were_stopped(tmp_path, monkeypatch, tally):
    rng = random.Random(0)
    whole = run_recipe(TRAINED, tmp_path / "whole").folder
    source = begun(tmp_path / "begun", monkeypatch)
    chosen, failures = cases(source, rng, 100), []
    for number, (file, damage) in enumerate(chosen):
        failures += resumed(source, file, damage, tmp_path / f"r{number}", rng, whole)
        shutil.rmtree(tmp_path / f"r{number}")
    tally("damaged folders of stopped runs, through run", len(chosen), failures)


def test_runs_that_were_finished(tmp_path, tally):
    rng = random.Random(0)
    source, protocol = finished(tmp_path / "source", tmp_path)
    chosen, failures = cases(source, rng, 100), []
    for number, (file, damage) in enumerate(chosen):
        failures += read(source, file, damage, tmp_path / f"r{number}", rng, protocol)
    tally("damaged folders of finished runs, through eval and compare", len(chosen), failures)
    failures = reported(source, cases(source, rng, 100), tmp_path / "many", rng)
    tally("damaged folders of finished runs, through report", 100, failures)
