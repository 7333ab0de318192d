"""What is said of work that takes long: without a terminal a log is never silent for more than half a minute."""

import re
from dataclasses import dataclass

import pytest
import torch
from image_files import parquet, pictures, png
from torch import nn

from hookflat import Quantity, hookimpl
from hookflat.functional.data import Data, Images
from hookflat.studies import progress
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import console, heading
from hookflat.training.console import Console, Progressing
from hookflat.training.heading import say_training


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which a test moves on."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def said_by(made, monkeypatch):
    lines = []
    monkeypatch.setattr(made.rich, "print", lines.append)
    return lines


def test_the_rest_takes_what_this_session_s_rate_says(clock):
    stage = Progressing("training", "steps", 3000, before=1000)
    assert stage.at(1000) == "training: 1,000 of 3,000 steps (33%)"
    clock[0] += 50
    assert stage.at(1500) == "training: 1,500 of 3,000 steps (50%), 10 a second, 2 min left"
    clock[0] += 50
    assert stage.at(2990) == "training: 2,990 of 3,000 steps (100%), 19.9 a second, 1 s left"


def test_a_line_follows_half_a_minute_of_silence_and_no_sooner(clock, monkeypatch):
    made = Console()
    lines = said_by(made, monkeypatch)
    tally = console.Tally()
    made.training(100, 0, tally)
    for step in range(1, 91):
        clock[0] += 1
        made.stepped(step)
    assert [re.search(r"\d+ of", line).group() for line in lines] == ["30 of", "60 of", "90 of"]
    clock[0] += 31
    tally.changed(tally)  # a measure on the way, at the same step
    assert "90 of 100 steps" in lines[-1]
    seen = made.counting("decoding", "images", 10)
    seen(1)
    assert "decoding" not in lines[-1]
    clock[0] += 40
    seen(5)
    assert lines[-1] == "  decoding: 5 of 10 images (50%), 0.125 a second, 40 s left"


def test_measures_say_how_far_they_are_and_by_name(clock, monkeypatch):
    made = Console()
    lines = said_by(made, monkeypatch)
    tally = console.Tally()
    plan = {"last": [("final", "test", "robust_loss", 100), ("final", "test", "margins", 300)]}
    made.measuring(plan, tally)
    for _ in range(2):
        clock[0] += 31
        tally.passes += 50
        tally.changed(tally)
    made.measured(tally, 1.0)
    clock[0] += 31
    tally.passes += 20
    tally.changed(tally)
    stages = [line.partition(", ")[0] for line in lines]
    assert stages[1:] == [
        "  measuring last test robust_loss: 50 of 400 passes (12%)",
        "  measuring last test robust_loss: 100 of 400 passes (25%)",
        "  measuring last test margins: 120 of 400 passes (30%)",
    ]


def test_lines_of_epochs_fit_80_columns_and_break_between_their_parts():
    parts = [f"number {i} {i * 1000} %" for i in range(12)]
    lines = console._wrapped(parts, 80).split("\n")
    assert max(map(len, lines)) <= 80
    assert [part for line in lines for part in line.strip().split("  ")] == parts


def test_decoding_counts_every_image(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKFLAT_CACHE", str(tmp_path / "cache"))
    x, y = pictures(12)
    files = [png(image) for image in x]
    path = parquet(tmp_path / "data", train=(files, y), test=(files[:4], y[:4]))
    seen = {}

    def counting(self, name, unit, total):
        return lambda count: seen.update({(name.split()[-1], total): count})

    monkeypatch.setattr(Console, "counting", counting)
    with tiny_run({"data": {"name": "images", "path": str(path)}}):
        assert seen == {("'train'", 12): 12, ("'test'", 4): 4}


def test_the_heading_says_data_network_normalisation_and_protocol(monkeypatch):
    with tiny_run({"model": {"name": "resnet_small", "width": 8}}) as run:
        lines = said_by(run.console, monkeypatch)
        say_training(run, resumed=False)
        mean = f"{float(run.network.mean):.3g}"
    text = "\n".join(lines)
    for line in (
        r"  data +tiny_data: 24 training, 12 test images",
        rf"  model +resnet_small, width 8, [\d,]+ parameters, normalised by mean {mean}, std",
        r" +\w+: [\w, ]+; at the end, on \d+",
    ):
        assert re.search(f"^{line}", text, re.M), line
    assert heading._normalisation(nn.Linear(2, 2)) == "no normalisation around it"


@pytest.mark.parametrize(
    ("attack", "remark"),
    [
        ({"eps": 0.3, "step_size": 0.0335, "steps": 7}, "; 7 steps reach 78% of eps from where they start"),
        ({"eps": 0.2, "eps_factor": 2, "alpha": 0.5, "step_size": 9, "steps": 1}, "; 1 steps reach 50% of eps from"),
        ({"eps": 0.3, "step_size": 0.05, "steps": 6}, ""),
        ({"eps": 0.3, "step_size": 0.05, "steps": 0, "start": "zero"}, ""),
        ({"eps": 0.0, "step_size": 0.05, "steps": 1}, ""),
        ({"name": "apgd", "eps": 0.3, "step_size": 0.0335, "steps": 1}, ""),
    ],
)
def test_the_heading_says_what_an_attack_cannot_reach(attack, remark, monkeypatch):
    with tiny_run({"attack": attack}) as run:
        lines = said_by(run.console, monkeypatch)
        say_training(run, resumed=False)
    (line,) = (line for line in lines if line.startswith("  attack"))
    assert ("reach" in line) == bool(remark)
    assert remark in line


@dataclass(eq=False)
class Shift:
    """An attack whose option has no default."""

    by: float

    @hookimpl
    def craft(self, batch):
        return (batch.x + self.by).clamp(0, 1)


def test_the_heading_says_of_images_what_numbers_suffer_from():
    def told(train, test):
        of = [Images(torch.zeros(len(y), 1, 4, 4, dtype=torch.uint8), torch.tensor(y)) for y in (train, test)]
        return [line.strip() for line in heading._of_data(Data(*of, 3))]

    mixed = [0, 1, 2] * 10
    assert told(mixed, mixed) == told(sorted(mixed), [0, 0, 1])[1:] == []  # of a few images nothing can be said
    assert told(mixed, sorted(mixed)) == [
        "note     test images come class by class, and measures take the first: shuffle them once"
    ]
    assert told([0, 2] * 15, mixed) == ["note     no training image is of class 1"]


def test_the_heading_says_options_without_a_default(monkeypatch):
    with tiny_run({"attack": {"name": "shift", "by": 0.25}}, [Shift]) as run:
        lines = said_by(run.console, monkeypatch)
        say_training(run, resumed=False)
    assert any(line.startswith("  attack") and "shift, by 0.25" in line for line in lines)


def test_a_run_without_measures_at_its_end_draws_no_empty_table(tmp_path, monkeypatch):
    lines = said_by(made := Console(), monkeypatch)
    done = run_recipe({"run": {"epochs": 1}}, tmp_path / "run")
    made.results(done.results.model_copy(update={"models": {}}))
    assert [line.partition(":")[0] for line in lines] == ["nothing is measured at the end"]


def test_a_study_says_what_is_done_and_at_work(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    study = progress.Progress(5, 2, lines.append)
    study.begun("at-0")
    now[0] += 240
    study.begun("mart-0")
    study.ended("at-0")
    now[0] += 30
    assert study.line().strip() == "1 of 5 runs; at work: mart-0 for 30 s; one takes 4 min, the rest 8 min"
    with study.told():
        while not lines:
            pass
    assert lines[0] == study.line()


def test_a_line_of_an_epoch_is_one_where_nobody_looks_at_a_terminal(monkeypatch):
    made = Console()
    made.quantities = {f"n{i}": Quantity(f"a number that is {i}", headline=True) for i in range(8)}
    said = said_by(made, monkeypatch)
    made.epoch(3, 5, {"lr": 0.1, "loss": 1.5, "test": {f"n{i}": 1.0 for i in range(8)}})
    assert len(said[-1].splitlines()) == 1
    assert "a number that is 7 1.000 test" in said[-1]
