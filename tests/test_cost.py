"""What a run costs, and first looks at it."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from commands import fails, hookflat
from torch import nn

from hookflat import UserError, hookimpl
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.testing import TinyData, TinyModel, recipe, tiny_run
from hookflat.training import cost
from hookflat.training.cost import Passes, cost_of, counted, seconds_of_a_pass
from hookflat.training.fitting import check_fit, forward_flops

STAGE = {"splits": ["train", "test"], "examples": 10}
FLAT = {"average_flatness": {"samples": 2, "steps": 3, "reference_restarts": 2}}
TABLES = {
    "plugins": {"awp": {}, "early_stopping": {"holdout": 3, "every": 1, "steps": 2, "restarts": 3}},
    "eval": {"final": STAGE | {"robust_loss": {"steps": 3, "restarts": 2}}, "flat": {"examples": 10} | FLAT},
}


@pytest.fixture(scope="module")
def tiny_cost():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "ENOUGH", 0.05)
        loaded = load_recipe(recipe(TABLES), catalogue=Catalogue([TinyData, TinyModel]))
        return cost_of(loaded)


def test_passes_are_those_of_the_method(tiny_cost):
    """PGD-2 has two passes back to the images and one that scores; AWP two back to the weights."""
    step = tiny_cost.step
    assert (step.images, step.forward, step.weights) == (16, 8, 16)
    parts = {p.name: p for p in tiny_cost.parts}
    assert (parts["training steps"].times, parts["training steps"].examples) == (6, 8)
    assert parts["curves robust_loss, test"].times == 2
    assert parts["early_stopping"].passes == 2 * 3 * (3 * 3 // 3)


def test_a_robust_loss_that_two_measures_ask_for_is_counted_once(tiny_cost):
    final = [p for p in tiny_cost.parts if p.name.startswith(("final rob", "flat"))]
    assert [(p.name, p.examples, p.passes) for p in final] == [
        ("final robust_loss, train", 10, 4 * 2 + 1),  # the clean pass is the clean error's
        ("final robust_loss, test", 9, 4 * 2 + 1),
        ("flat average_flatness, test", 9, 5 * 2),
    ]
    assert {p.times for p in final} == {2}  # for the last network and the early-stopped one
    assert all(p.seconds > 0 for p in final)
    assert tiny_cost.hours * 3600 == pytest.approx(sum(p.seconds for p in tiny_cost.parts))


def test_nothing_is_kept(tmp_path, tiny_cost):
    assert tiny_cost.disk > 0
    assert tiny_cost.memory > 1e8


def test_flops_by_hand():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(3 * 16, 5))
    forward = 2 * (16 * 3 * 2 * 9) + 2 * (48 * 5)
    assert forward_flops(net, torch.zeros(7, 2, 4, 4)) == forward
    with counted() as passes:
        x = torch.zeros(7, 2, 4, 4, requires_grad=True)
        with torch.no_grad():
            net(x)
        net(x).sum().backward()
        net.requires_grad_(False)
        net(x[:2]).sum().backward()
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 3, 4, 4))
        net(x[:1].detach())
    assert passes == Passes(forward=9, images=2, weights=7)
    assert passes.flops(10) == 10 * (9 + 2 * 2 + 3 * 7)


def test_the_seconds_of_a_pass_are_those_of_the_batches_behind_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    class Slow(nn.Module):
        def forward(self, x):
            clock[0] += 5.0 if not clock[0] else 0.25 * len(x)
            return x

    net, batch = Slow(), torch.zeros(2, 1, 1, 1)
    whole = seconds_of_a_pass(lambda: [net(batch) for _ in range(4)], torch.device("cpu"), 100)
    assert whole == pytest.approx(0.25)
    clock[0] = 0.0
    stopped = seconds_of_a_pass(lambda: [net(batch) for _ in range(1000)], torch.device("cpu"), 3)
    assert stopped == pytest.approx(0.25)
    assert clock[0] < 10
    assert seconds_of_a_pass(lambda: None, torch.device("cpu")) == 0


# --- the commands -----------------------------------------------------------------------------------------------------

SMALL = ["--set", "run.epochs=1", "--set", "data.train=40", "--set", "data.test=60", "--set", "model.width=8"]
SMALL += ["--set", "plugins.early_stopping.holdout=10", "--set", "run.threads=1"]
for stage in ("curves", "through_training", "final", "final_flatness"):
    SMALL += ["--set", f"eval.{stage}.examples=10"]
SMALL += ["--set", "eval.final.robust_loss.restarts=1", "--set", "eval.final.robust_loss.steps=2"]
SMALL += ["--set", "eval.final_flatness.average_flatness.samples=2"]
SMALL += ["--set", "eval.final_flatness.average_flatness.steps=2"]
SMALL += ["--set", "eval.final_flatness.average_flatness.reference_restarts=1"]


def test_show_cost_says_hours_part_by_part_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "ENOUGH", 0.05)
    said = hookflat("show", "at", *SMALL, "--cost", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    for word in ("minutes on cpu, one process", "training steps", "final robust_loss, test", "memory:", "disk:"):
        assert word in said.stdout
    assert re.search(r"^final robust_loss, test +2 +10 ", said.stdout, re.MULTILINE)  # last and best
    assert not list(tmp_path.iterdir())


def test_a_plan_with_costs_tries_each_recipe_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "ENOUGH", 0.02)
    study = tmp_path / "mine.toml"
    study.write_text('[study]\nruns = ["at"]\nseeds = [0, 1]\nprotocol = "quick"\n')
    said = hookflat("study", study, "--plan", "--cost", "--json", *SMALL, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    (row,) = json.loads(said.stdout)["costs"]
    assert (row["name"], row["count"]) == ("at-0", 2)
    assert "quick worst_flatness, test" in [part["name"] for part in row["cost"]["parts"]]
    each = sum(part["seconds"] for part in row["cost"]["parts"]) / 3600
    assert row["hours"] == pytest.approx(2 * each)
    assert "--cost goes with --plan" in fails(2, "study", study, "--cost", cwd=tmp_path)


def test_a_dry_run_steps_measures_and_keeps_nothing(tmp_path):
    said = hookflat("run", "at_awp", *SMALL, "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    for line in ("one step: loss", "final_flatness, 4 test examples: average_flatness", "nothing was kept"):
        assert line in said.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("hook", "dry"), [("build_model", ["run", "--dry-run"]), ("after_step", ["show", "--cost"])])
def test_a_plugin_that_fails_is_named_where_nothing_is_kept(tmp_path, monkeypatch, hook, dry):
    monkeypatch.setattr(cost, "ENOUGH", 0.02)
    file = tmp_path / "mine.py"
    wrapper = "wrapper=True" if hook == "build_model" else ""
    file.write_text(
        "from dataclasses import dataclass\nfrom hookflat import hookimpl\n\n@dataclass(eq=False)\nclass Mine:\n"
        f"    @hookimpl({wrapper})\n    def {hook}(self):\n        {'yield' if wrapper else 'pass'}\n        1 / 0\n"
    )
    command, option = dry
    said = fails(3, command, "at", *SMALL, "--plugin", file, "--set", "plugins.mine={}", option, cwd=tmp_path)
    assert f"hook {hook!r}" in said
    assert "mine" in said
    assert "goes on" not in said


def test_a_dry_run_finds_a_measure_that_fails(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom hookflat import hookimpl\n@dataclass(eq=False)\nclass Bad:\n"
        "    @hookimpl\n    def measure(self, subject): raise ZeroDivisionError('oh')\n"
    )
    used = ("--plugin", file, "--set", "eval.final.bad={}", "--dry-run")
    assert "ZeroDivisionError: oh" in fails(3, "run", "at", *SMALL, *used, cwd=tmp_path)


def test_the_first_steps_leave_a_run_that_goes_on(tmp_path):
    said = hookflat("run", "at", *SMALL, "--set", "run.batch_size=10", "--max-steps", 2, "--out", tmp_path / "run")
    assert "step 2/4  loss " in said.stdout
    assert "stopped after step 2 of 4" in said.stdout
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000000002-epoch-000000"]
    assert not (tmp_path / "run" / "eval.json").exists()
    again = hookflat("run", "at", *SMALL, "--set", "run.batch_size=10", "--out", tmp_path / "run")
    assert "resumed after step 2" in again.stdout
    assert (tmp_path / "run" / "eval.json").exists()


# --- the network against the data -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Fixed:
    """A network that does not ask what the data are."""

    channels: int = 1
    classes: int = 3
    nan: bool = False

    @hookimpl
    def build_model(self):
        net = nn.Sequential(nn.Conv2d(self.channels, 4, 3), nn.Flatten(), nn.Linear(64, self.classes))
        if self.nan:
            nn.init.constant_(net[2].bias, float("nan"))
        return net


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": 3}, r"model 'fixed' does not take the data's images \(1, 6, 6\): .*3 channels"),
        ({"classes": 10}, r"for an image \(1, 6, 6\) it gives \(10,\), and the data has 3 classes"),
        ({"nan": True}, "logits that are not finite before any training"),
    ],
)
def test_a_model_that_does_not_fit_the_data_says_so_before_training(options, told):
    with pytest.raises(UserError, match=told), tiny_run({"model": {"name": "fixed"} | options}, [Fixed]):
        pass


def test_a_model_that_answers_otherwise_is_told():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match="it gives a tuple"):
        check_fit(Pair(), "pair", TinyData().build_data())
