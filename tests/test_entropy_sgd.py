"""Entropy-SGD against a loop written from the algorithm, on a quadratic."""

import math

import pytest
import torch

import hookflat
from hookflat.functional import seeds
from hookflat.testing import run_recipe, tiny_run
from hookflat_plugins.entropy_sgd import EntropySGD

OPTIONS = {
    "lr": 0.5,
    "langevin_steps": 3,
    "inner_lr": 0.1,
    "gamma": 0.3,
    "scoping": 0.1,
    "noise": 0.2,
    "averaging": 0.75,
    "momentum": 0.9,
    "weight_decay": 0.01,
}


def by_hand(w, a, rates, o, draw):
    """Chaudhari et al. (2017), Alg. 1, as in protocol 4.2, for the loss 0.5 sum a w^2; `rates`: of each cycle."""
    momentum, path = torch.zeros_like(w), []
    for t, eta in enumerate(rates):
        anchor, mean, inner = w.clone(), w.clone(), torch.zeros_like(w)
        gamma = o["gamma"] * (1 + o["scoping"]) ** t
        for _ in range(o["langevin_steps"]):
            g = a * w + o["weight_decay"] * w
            inner = o["momentum"] * inner + g
            g = g + o["momentum"] * inner
            g = g - gamma * (anchor - w) + o["noise"] / math.sqrt(0.5 * o["inner_lr"]) * draw(w.shape)
            w = w - o["inner_lr"] * g
            mean = o["averaging"] * mean + (1 - o["averaging"]) * w
            path.append(w.clone())
        g = (anchor - mean) + o["weight_decay"] * anchor
        momentum = o["momentum"] * momentum + g
        w = anchor - eta * (g + o["momentum"] * momentum)
        path[-1] = w.clone()
    return path


@pytest.mark.parametrize("change", [{}, {"langevin_steps": 1}, {"momentum": 0.0, "noise": 0.0}])
def test_equals_the_algorithm_on_a_quadratic(change):
    o = OPTIONS | change
    a, start = torch.tensor([1.0, 0.1, 3.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    w = torch.nn.Parameter(start.clone())
    ours_noise, hand_noise = seeds.generator(0), seeds.generator(0)
    optimizer = EntropySGD([w], noise_from=lambda: ours_noise, **o)
    rates = [0.5, 0.5, 0.05]
    expected = by_hand(
        start,
        a,
        rates,
        o,
        lambda shape: hookflat.normals_like([torch.empty(shape, dtype=torch.float64)], hand_noise)[0],
    )
    for i, position in enumerate(expected):
        optimizer.param_groups[0]["lr"] = rates[i // o["langevin_steps"]]
        optimizer.zero_grad()
        (0.5 * (a * w**2).sum()).backward()
        optimizer.step()
        assert torch.allclose(w, position, atol=1e-12)
        assert optimizer.mid_cycle == ((i + 1) % o["langevin_steps"] != 0)


def test_measures_and_after_step_see_the_outer_weights_only(tmp_path):
    """Three steps an epoch and cycles of two: epoch 1 ends inside a cycle, at the weights after step 2."""
    tables = {"optimizer": {"name": "entropy_sgd", "langevin_steps": 2}}
    from hookflat.training import loop

    with tiny_run(tables | {"plugins": {"averaging": {"decay": 0}}}) as run:
        seen = []
        for batch in run.batches():
            loop.step(run, batch)
            seen.append([p.detach().clone() for p in run.network.parameters()])
        assert run.mid_cycle
        outer = [p.detach() for p in run.hook.eval_model(run=run).parameters()]
        assert all(torch.equal(a, b) for a, b in zip(outer, seen[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(seen[2], seen[1], strict=True))
    with tiny_run(tables) as run:
        for batch in run.batches():
            loop.step(run, batch)
        outer = [p.detach() for p in run.eval_model().parameters()]
        assert all(torch.equal(a, b) for a, b in zip(outer, seen[1], strict=True))


def test_trains(tmp_path):
    tables = {"optimizer": {"name": "entropy_sgd", "lr": 1.0}, "run": {"epochs": 20}}
    result = run_recipe(tables, tmp_path / "run")
    assert result.results.models["last"].test["clean_error"] < 0.4
