"""How many operations Python asks torch for: they must not grow with the number of layers.

One on a list is one here; a GPU launches one for each tensor where shapes or strides differ, but from C++, faster.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hookflat
from hookflat.functional.attack_view import AttackView
from hookflat.functional.seeds import normals_like
from hookflat_plugins.entropy_sgd import EntropySGD


class Launches(TorchDispatchMode):
    """Counts operations but for views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in str(func))
        return func(*args, **(kwargs or {}))


def launched(call):
    with Launches() as seen:
        call()
    return seen.count


FEW, MANY = 2, 7


def net(depth):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 4)).eval()


def a_layer(of_depth):
    """The operations of one more layer."""
    return (of_depth(MANY) - of_depth(FEW)) / (MANY - FEW)


def test_an_attack_view_follows_all_layers_at_once():
    assert a_layer(lambda depth: launched(AttackView(net(depth)).refresh)) == 0


@pytest.mark.parametrize("filters", [False, True])
def test_a_step_of_a_worst_case_ascent_takes_little_more_than_its_passes(filters):
    x, y = torch.rand(8, 3, 4, 4), torch.arange(8) % 4

    def step(depth):
        model = net(depth)

        def ascent(sweeps):
            hookflat.worst_flatness(model, (x, y), sweeps=sweeps, attempts=1, reference=0.0, filters=filters)

        ascent(1)  # makes the attack view
        return launched(lambda: ascent(3)) - launched(lambda: ascent(2))

    passes = 4  # convolution and activation, there and back
    norms = 4 if filters else 0  # of weight and bias, of gradient and perturbation: each layer has filters of its own
    assert a_layer(step) <= passes + norms


def test_a_step_of_entropy_sgd_moves_all_parameters_at_once():
    def step(count):
        params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
        for p in params:
            p.grad = torch.ones(3)
        made = {"lr": 0.1, "langevin_steps": 5, "inner_lr": 0.1, "gamma": 1e-4, "scoping": 1e-3, "noise": 1e-4}
        made |= {"averaging": 0.75, "momentum": 0.9, "weight_decay": 5e-4}
        optimizer = EntropySGD(params, noise_from=lambda: torch.Generator().manual_seed(0), **made)
        optimizer.step()
        return launched(optimizer.step)

    assert a_layer(step) <= 1  # its noise is cut out of all


def test_normals_for_many_tensors_are_drawn_at_once():
    def draw(count):
        return launched(lambda: normals_like([torch.empty(5)] * count, torch.Generator().manual_seed(0)))

    assert a_layer(draw) <= 1
