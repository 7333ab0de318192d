"""The contract of hookflat's plugins, the loss against its formula, the measure against a closed form."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import hookflat
import numpy as np
import pytest
import torch
from hookflat import Examples, Images, Subject, Threat, hookimpl, testing
from torch import Tensor, nn

from hookflat_alp.local_lipschitz import LocalLipschitz


@pytest.mark.parametrize("plugin", ["alp", "local_lipschitz"])
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, plugin):
    check(plugin)


# --- the loss ---------------------------------------------------------------------------------------------------------


def logits_of(run, x, x_adv):
    """Float64 logits of both halves, each (n, K), from a copy of the network in training mode."""
    network = copy.deepcopy(run.network).double()
    with torch.no_grad():
        logits = network(torch.cat([x, x_adv]).double()).numpy()
    return logits[: len(x)], logits[len(x) :]


def cross_entropy(logits, target):
    """Mean cross-entropy of logits (n, K) with distributions (n, K)."""
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(target * log_p).sum(axis=1).mean()


@pytest.mark.parametrize(("weight", "clean"), [(0.5, 0.5), (0.0, 0.5), (3.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "distributions"])
def test_loss_is_the_formula(weight, clean, soft):
    with testing.tiny_run({"loss": {"name": "alp", "weight": weight, "clean": clean}}) as run:
        batch = next(run.batches())
        target = np.eye(3)[batch.target.numpy()]
        if soft:
            target = 0.7 * target + 0.1
            batch.target = torch.from_numpy(target).float()
        x_adv = run.hook.craft(run=run, batch=batch, objective=run.hook.attack_objective(run=run, batch=batch))
        z, z_adv = logits_of(run, batch.x, x_adv)
        entropy = clean * cross_entropy(z, target) + (1 - clean) * cross_entropy(z_adv, target)
        expected = entropy + weight * ((z - z_adv) ** 2).mean()
        assert run.loss(batch, x_adv).item() == pytest.approx(expected, rel=1e-5)


@dataclass(eq=False)
class Doubled:
    """Twice the cross-entropy, to see that the loss asks `run.criterion`."""

    @hookimpl
    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        return 2 * nn.functional.cross_entropy(logits, target, reduction="none")


def test_loss_composes_with_another_criterion():
    losses = []
    for plugins in ({}, {"doubled": {}}):
        with testing.tiny_run({"loss": {"name": "alp", "weight": 0.0}, "plugins": plugins}, [Doubled]) as run:
            batch = next(run.batches())
            losses.append(run.loss(batch, batch.x).item())
    assert losses[1] == pytest.approx(2 * losses[0])


@pytest.mark.parametrize(("option", "value"), [("weight", -0.1), ("clean", 1.1), ("clean", "half")])
def test_values_out_of_range_are_refused(tmp_path, option, value):
    with pytest.raises(hookflat.UserError, match=f"loss.{option}"):
        testing.run_recipe({"loss": {"name": "alp", option: value}}, tmp_path)


# --- the measure ------------------------------------------------------------------------------------------------------


def measured(model, x, *, eps, batch_size=100, **options):
    """The measure of a network on images (n, C, H, W) uint8."""
    examples = Examples(Images(x, torch.zeros(len(x), dtype=torch.int64)), batch_size=batch_size)
    subject = Subject(model, "test", examples, num_classes=3, threat=Threat(eps), step_size=eps / 4, seed=0)
    return LocalLipschitz(**options).measure(subject)["local_lipschitz"]


def images(n, size=2):
    """Gray images whose values stay inside [0, 1] by more than 0.2."""
    return torch.randint(64, 192, (n, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(*widths):
    """Linear layers of these widths with ReLU between them, the same every time."""
    generator = torch.Generator().manual_seed(1)
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        nn.init.normal_(layer.weight, generator=generator)
        modules += [nn.ReLU(), layer]
    return nn.Sequential(nn.Flatten(), *modules[1:])


def test_measure_of_a_linear_network_is_the_closed_form():
    model = network(4, 3)
    weight = model[1].weight.detach().double()
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    supremum = (corners @ weight.T).abs().sum(dim=1).max().item()
    assert measured(model, images(6), eps=0.1, restarts=20) == pytest.approx(supremum, rel=1e-4)


def test_measure_never_exceeds_a_bound():
    model = network(16, 8, 3)
    first, second = (model[layer].weight.detach().abs() for layer in (1, 3))
    bound = float((second @ first).sum())
    result = [measured(model, images(6, size=4), eps=0.2, steps=steps) for steps in (1, 20)]
    assert 0 < result[0] <= result[1] <= bound


def test_measure_is_zero_without_a_ball():
    assert measured(network(4, 3), images(3), eps=0.0) == 0


def test_measure_does_not_depend_on_the_batch_size():
    model = network(16, 8, 3)
    one, other = (measured(model, images(7, size=4), eps=0.2, batch_size=size) for size in (2, 7))
    assert one == pytest.approx(other, rel=1e-5)


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_runs_by_its_name(tmp_path):
    few = {
        "run.epochs": 1,
        "data.train": 64,
        "model.width": 8,
        "plugins.early_stopping.enabled": False,
        "eval.curves.examples": 10,
        "eval.through_training.examples": 10,
        "eval.final.examples": 20,
        "eval.final.robust_loss.restarts": 1,
        "eval.final_flatness.examples": 10,
        "eval.final_flatness.average_flatness.samples": 1,
        "eval.final_flatness.average_flatness.reference_restarts": 1,
    }
    result = hookflat.run("alp", overrides=few, folder=tmp_path / "run")
    assert result.results.models["last"].test["local_lipschitz"] > 0
