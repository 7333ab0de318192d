"""What plugins hand on is looked at in the first step."""

from dataclasses import dataclass

import pytest
import torch

from hookflat import TrainingFailed, hookimpl
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


def test_a_wrapper_that_does_not_restore_the_weights_is_told(tmp_path):
    plugin = made("gradients", never_restores, wrapper=True)
    with pytest.raises(TrainingFailed, match=r"'gradients' .plugins: 'made'. leaves the weights moved"):
        run_recipe({"plugins": {"made": {}}}, tmp_path / "run", [plugin])


def test_a_wrapper_that_yields_twice_is_told(tmp_path):
    def twice(self):
        yield
        yield

    with pytest.raises(TrainingFailed, match=r"must yield exactly once"):
        run_recipe({"plugins": {"made": {}}}, tmp_path / "run", [made("gradients", twice, wrapper=True)])
