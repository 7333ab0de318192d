"""What plugins hand on is looked at in the first step."""

from dataclasses import dataclass

import pytest
import torch

from hookflat import Quantity, TrainingFailed, hookimpl
from hookflat.testing import run_recipe


def made(hook, function, *, wrapper=False):
    return dataclass(eq=False)(type("Made", (), {hook: hookimpl(function, wrapper=wrapper)}))


def never_restores(self, run):
    next(run.network.parameters()).data += 1
    return (yield)


WRONG = {
    "craft outside the box": (
        made("craft", lambda self, batch: batch.x + 5),
        "attack",
        r"'craft' .*'made'.* outside \[0, 1\]",
    ),
    "craft of another shape": (made("craft", lambda self, batch: batch.x[:1]), "attack", "shape .8, 1, 6, 6."),
    "transform": (made("transform_batch", lambda self, batch: setattr(batch, "x", 10 * batch.x)), None, "outside"),
    "criterion": (
        made("criterion", lambda self, logits: logits.mean()),
        None,
        r"shape \(8,\), not a tensor of shape \(\)",
    ),
    "vector loss": (made("loss", lambda self, run, x_adv: run.model(x_adv).mean(1)), "loss", r"shape \(\), not"),
    "extra text": (made("extra_loss", lambda self: "0.1"), None, r"'extra_loss' .*'made'.* shape \(\), not '0.1'"),
    "extra vector": (made("extra_loss", lambda self: torch.zeros(3)), None, r"'extra_loss' .*'made'.* shape \(3,\)"),
    "no loss": (made("loss", lambda self: torch.zeros(())), "loss", "no gradient flows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_results_of_the_wrong_shape_or_range_are_told(case, tmp_path):
    plugin, slot, message = WRONG[case]
    tables = {slot: {"name": "made"}} if slot else {"plugins": {"made": {}}}
    with pytest.raises(TrainingFailed, match=message):
        run_recipe(tables, tmp_path / "run", [plugin])


def test_a_criterion_that_the_loss_does_not_ask_for_is_told(tmp_path):
    """Without it the training would be the same."""
    plugin = made("loss", lambda self, run, batch, x_adv: run.model(x_adv).square().mean())
    tables = {"loss": {"name": "made"}, "plugins": {"label_smoothing": {}}}
    with pytest.raises(TrainingFailed, match=r"loss asks no `run.criterion`: 'label_smoothing' would change nothing"):
        run_recipe(tables, tmp_path / "run", [plugin])
    assert run_recipe(tables | {"plugins": {"recorder": {}}}, tmp_path / "recorded", [plugin])


def test_a_loss_that_asks_later_is_let_go_on(tmp_path):
    def loss(self, run, batch, x_adv):
        logits = run.model(x_adv)
        return logits.square().mean() if run.step < 2 else run.criterion(logits, batch.target).mean()

    tables = {"loss": {"name": "made"}, "plugins": {"label_smoothing": {}}}
    assert run_recipe(tables, tmp_path / "run", [made("loss", loss)])


def named(name, hook, body):
    """A plugin of this name, as `made` makes one."""
    cls = made(hook, body)
    cls.__name__ = name.title()
    return cls


@pytest.mark.parametrize("hook", ["criterion", "gradients"])
def test_a_plugin_behind_another_that_answers_is_told(tmp_path, hook):
    answers = {
        "criterion": lambda self, logits, target: torch.nn.functional.cross_entropy(logits, target, reduction="none"),
        "gradients": lambda self, run, batch, x_adv: run.loss_and_gradients(batch, x_adv),
    }
    passes = {
        "criterion": lambda self, logits, target: None,
        "gradients": lambda self, run, batch, x_adv: None,
    }
    both = [named("first", hook, answers[hook]), named("second", hook, answers[hook])]
    tables = {"plugins": {"first": {}, "second": {}}}
    with pytest.raises(TrainingFailed, match=f"plugins 'first' and 'second' both answer '{hook}', and the first alone"):
        run_recipe(tables, tmp_path / "run", both)
    assert run_recipe(tables, tmp_path / "other", [named("first", hook, passes[hook]), both[1]])


def test_a_wrapper_that_does_not_restore_the_weights_is_told(tmp_path):
    plugin = made("gradients", never_restores, wrapper=True)
    with pytest.raises(TrainingFailed, match=r"'gradients' .plugins: 'made'. leaves the weights moved"):
        run_recipe({"plugins": {"made": {}}}, tmp_path / "run", [plugin])


def stretches(self, subject):
    with torch.no_grad():
        next(subject.model.parameters()).mul_(1.5)
    return {"mine": 1.0}


def trains_on(self, subject):
    subject.model.train()
    with torch.no_grad():
        subject.model(torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    subject.model.eval()
    return {"mine": 1.0}


def other_mode(self, subject):
    subject.model.train(not subject.model.training)
    return {"mine": 1.0}


def steps_back(self, subject):
    x, y, _ = next(iter(subject.examples))
    torch.nn.functional.cross_entropy(subject.model(x), y).backward()
    return {"mine": 1.0}


MEASURES = {
    "gradients": (steps_back, "measure 'made' leaves gradients, which a training would step along"),
    "weights": (stretches, "measure 'made' leaves .* of the network changed: put it back in `finally`"),
    "statistics": (trains_on, "measure 'made' leaves .*running_mean of the network changed"),
    "mode": (other_mode, "leaves the network in another mode"),
    "no dict": (lambda self, subject: 1.0, "measure 'made' should return a dict of numbers, not float"),
    "a text": (lambda self, subject: {"mine": "abc"}, "should return a float for 'mine', not str"),
    "a tensor": (lambda self, subject: {"mine": torch.ones(2)}, "should return a float for 'mine', not Tensor"),
    "a line's": (lambda self, subject: {"stage": 1.0}, "measure 'made': 'stage' is taken, each line of metrics.jsonl"),
}


@pytest.mark.parametrize("stage", [{"every": 1}, {}])
@pytest.mark.parametrize("case", MEASURES)
def test_a_measure_that_leaves_the_network_changed_or_gives_no_numbers_is_told(case, stage, tmp_path):
    measure, message = MEASURES[case]
    tables = {"eval": {"own": {**stage, "made": {}}}}
    with pytest.raises(TrainingFailed, match=message):
        run_recipe(tables, tmp_path / "run", [made("measure", measure)])


DECLARED = {
    "unit": (lambda self: {"mine": Quantity("mine", unit="%")}, "numbers.*unit: should be one of 'share', 'loss'"),
    "role": (lambda self: {"mine": Quantity("mine", role="flat")}, "numbers.*role: should be one of 'clean error'"),
    "text": (lambda self: {"mine": "mine"}, "numbers.*should give a hookflat.Quantity for each name"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_declaration_of_numbers_that_is_none_is_told_before_anything_is_trained(case, tmp_path):
    numbers, message = DECLARED[case]
    plugin = made("measure", lambda self, subject: {"mine": 1.0})
    plugin.numbers = numbers
    with pytest.raises(TrainingFailed, match=f"measure 'made', {message}"):
        run_recipe({"eval": {"own": {"made": {}}}}, tmp_path / "run", [plugin])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_wrapper_that_yields_twice_is_told(tmp_path):
    def twice(self):
        yield
        yield

    with pytest.raises(TrainingFailed, match=r"must yield exactly once"):
        run_recipe({"plugins": {"made": {}}}, tmp_path / "run", [made("gradients", twice, wrapper=True)])
