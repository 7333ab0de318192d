"""The robust loss along directions: their lengths, their points, their figures."""

import copy

import pytest
import torch

import hookflat
from hookflat.functional import seeds
from hookflat.functional.attacks import PGD20
from hookflat.functional.landscapes import _direction
from hookflat.functional.neighborhood import layers, sphere
from hookflat_plugins.landscape import contours, curves

ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 2, "restarts": 1, "start": "zero"}


def test_a_point_is_the_robust_loss_at_the_moved_weights(digits_net, digits_pair):
    measured = hookflat.landscape(digits_net, digits_pair, directions=2, points=5, seed=3, **ATTACK)
    assert measured.at[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert measured.loss.shape == measured.error.shape == (2, 5)
    here = hookflat.robust_loss(digits_net, digits_pair, **ATTACK)
    assert measured.loss[:, 2].tolist() == pytest.approx([here.loss] * 2, rel=1e-5)
    assert measured.error[0, 2].item() == pytest.approx(here.error)
    copied = copy.deepcopy(digits_net)
    weights = list(layers(copied).values())
    d = sphere(weights, 0.5, seeds.generator(3, "landscape", 1))
    with torch.no_grad():
        for w, part in zip(weights, d, strict=True):
            w -= part
    there = hookflat.robust_loss(copied, digits_pair, seed=3, **ATTACK)
    assert measured.loss[1, 0].item() == pytest.approx(there.loss, rel=1e-4)


def test_filter_directions_are_li_s(digits_net, digits_pair):
    """Every filter and every row of the linear layer has the length of its weights, biases stay."""
    weights, d = _direction(digits_net, digits_pair, "filter", None, 0, PGD20, 0)
    assert all(w.dim() > 1 for w in weights)
    for w, part in zip(weights, d, strict=True):
        for row, along in zip(w, part, strict=True):
            assert along.norm().item() == pytest.approx(row.norm().item(), rel=1e-4)


def test_an_adversarial_direction_has_its_radius_and_rises(digits_net, digits_pair):
    attack = PGD20.but(**ATTACK)
    weights, d = _direction(digits_net, digits_pair, "adversarial", 0.05, 0, attack, 0)
    for w, part in zip(weights, d, strict=True):
        assert part.norm().item() == pytest.approx(0.05 * w.norm().item(), rel=1e-4, abs=1e-9)
    options = {"kind": "adversarial", "radius": 0.05, "directions": 2, "points": 3, **ATTACK}
    measured = hookflat.landscape(digits_net, digits_pair, **options)
    assert (measured.loss[:, 2] > measured.loss[:, 1]).all()
    assert not torch.equal(measured.loss[0], measured.loss[1])


def test_a_plane_holds_the_lines_of_its_directions(digits_net, digits_pair):
    lines = hookflat.landscape(digits_net, digits_pair, directions=2, points=3, **ATTACK)
    plane = hookflat.landscape_2d(digits_net, digits_pair, points=3, **ATTACK)
    grid = plane.loss.view(3, 3)
    assert grid[:, 1].tolist() == pytest.approx(lines.loss[0].tolist(), rel=1e-4)
    assert grid[1, :].tolist() == pytest.approx(lines.loss[1].tolist(), rel=1e-4)
    assert plane.at.view(3, 3, 2)[2, 0].tolist() == [1, -1]


def test_clean_landscapes_are_not_attacked(digits_net, digits_pair):
    x, y = digits_pair
    measured = hookflat.landscape(digits_net, digits_pair, directions=1, points=3, restarts=0)
    assert measured.loss[0, 1].item() == pytest.approx(
        torch.nn.functional.cross_entropy(digits_net(x), y).item(), rel=1e-4
    )


def test_figures_show_every_direction_and_the_network():
    t = torch.linspace(-1, 1, 5)
    figure = curves(t, torch.stack([t**2, 2 * t**2]), "t")
    assert len(figure.axes[0].lines) == 3
    at = torch.cartesian_prod(t, t)
    figure = contours(at, at.square().sum(dim=1), "||w||")
    assert figure.axes[0].get_aspect() == 1
