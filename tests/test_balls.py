"""The balls of every norm: projections against their definition and other solvers, starts, closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import L1_projection
from scipy import stats
from scipy.optimize import brentq
from torch import nn
from torch.nn.functional import softplus

import hookflat
from hookflat.functional.balls import BALLS, L1Ball, L2Ball
from hookflat.functional.threats import Threat

NORMS = ["Linf", "L2", "L1"]
RADII = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
STARTS = ["uniform_norm", "uniform", "gaussian", "zero"]


def drawn(seed, n=4, values=12, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 1, values, generator=generator, dtype=torch.float64)
    x[:, ..., :2] = torch.tensor([0.0, 1.0])  # walls that are touched
    return x, x + spread * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def length(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), {"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1)


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.one_of(st.just(0.0), st.floats(1e-3, 8)),
    spread=st.floats(1e-3, 3),
    seed=st.integers(0, 999),
)
def test_no_allowed_image_is_nearer_than_the_projection(norm, eps, spread, seed):
    """p is the projection of u on a convex set if and only if <u - p, z - p> <= 0 for all of its z."""
    x, u = drawn(seed, spread=spread)
    p = BALLS[norm](x, eps).project(u)
    assert (length(p - x, norm) <= eps * (1 + 1e-9) + 1e-12).all()
    assert p.min() >= 0
    assert p.max() <= 1
    corners = torch.zeros(24, 12, dtype=torch.float64)
    for i in range(12):
        corners[2 * i, i], corners[2 * i + 1, i] = 1, -1
    directions = torch.cat([corners, torch.randn(60, 12, dtype=torch.float64), (p - x).flatten(1)])
    for direction in directions:
        step = direction.view(1, 1, 1, 12) / length(direction[None], norm).clamp_min(1e-12)
        for share in (1.0, 0.3):
            z = (x + eps * share * step).clamp(0, 1)  # clipping makes no change larger
            assert (((u - p) * (z - p)).flatten(1).sum(dim=1) <= 1e-8).all()


@pytest.mark.parametrize("eps", [0.05, 0.7, 3.0])
def test_l1_projection_is_that_of_apgd(eps):
    x, u = (t.float() for t in drawn(5, n=50, values=40))
    theirs = u + L1_projection(x, u - x, eps).view_as(x)
    torch.testing.assert_close(L1Ball(x, eps).project(u), theirs, atol=2e-5, rtol=0)  # theirs sums in float32


@pytest.mark.parametrize("eps", [0.05, 0.7, 1.4])
def test_l2_projection_solves_for_the_multiplier(eps):
    x, u = drawn(6, n=20)
    ours = L2Ball(x, eps).project(u)
    for i in range(len(x)):

        def at(t, i=i):
            return (x[i] + t * (u[i] - x[i])).clamp(0, 1)

        t = 1.0 if (at(1.0) - x[i]).norm() <= eps else brentq(lambda t, i=i: (at(t) - x[i]).norm().item() - eps, 0, 1)
        torch.testing.assert_close(ours[i], at(t), atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_allowed_stays_as_it_is(norm):
    x, _ = drawn(1)
    ball = BALLS[norm](x, RADII[norm])
    inside = ball.start("uniform_norm", torch.arange(4), 3)
    torch.testing.assert_close(ball.project(inside), inside, atol=1e-12, rtol=0)
    torch.testing.assert_close(ball.part(torch.tensor([2])).project(inside[2:3]), inside[2:3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", STARTS)
def test_starts_lie_in_the_ball_and_depend_on_the_key_alone(norm, start):
    x = torch.full((6, 1, 4, 4), 0.5)
    ball = BALLS[norm](x, RADII[norm])
    points = ball.start(start, torch.arange(6), 7)
    assert (length(points - x, norm) <= RADII[norm] * (1 + 1e-6)).all()
    torch.testing.assert_close(ball.part(torch.tensor([4])).start(start, torch.tensor([4]), 7), points[4:5])


@pytest.mark.parametrize(("norm", "eps"), [("L2", 0.4), ("L1", 0.4)])
def test_uniform_starts_are_uniform_in_the_ball(norm, eps):
    """In two dimensions: the share inside a radius r is r squared, and all quadrants are alike."""
    x = torch.full((20000, 1, 1, 2), 0.5)
    delta = (BALLS[norm](x, eps).start("uniform", torch.arange(20000), 1) - x).flatten(1)
    inside = (length(delta, norm) / eps).square()
    assert stats.kstest(inside.numpy(), "uniform").pvalue > 0.01
    quadrants = np.bincount((2 * (delta[:, 0] > 0) + (delta[:, 1] > 0)).numpy(), minlength=4)
    assert stats.chisquare(quadrants).pvalue > 0.01
    share = delta[:, 0].abs() / delta.abs().sum(dim=1)  # along an edge of the diamond, along a quarter of the circle
    angle = torch.atan2(delta[:, 1].abs(), delta[:, 0].abs()) / (torch.pi / 2)
    assert stats.kstest((share if norm == "L1" else angle).numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_steps_have_length_one_and_rise(norm):
    gradient, x = torch.randn(5, 3, 8, 8), torch.rand(5, 3, 8, 8)
    step = BALLS[norm](x, 0.1).ascent(gradient, x)
    torch.testing.assert_close(length(step, norm), torch.ones(5))
    assert ((step * gradient).flatten(1).sum(dim=1) > 0).all()
    if norm == "L1":
        assert ((step != 0).flatten(1).sum(dim=1) == 1).all()
    assert not BALLS[norm](x, 0.1).ascent(torch.zeros_like(x), x).any()


@pytest.mark.parametrize(("eps", "moved"), [(0.3, 1), (3.0, 3), (3.1, 4), (500, 100)])
def test_steps_in_l1_move_as_many_values_as_the_radius_needs(eps, moved):
    x = torch.full((1, 1, 10, 10), 0.5)
    gradient = torch.arange(100, 0, -1.0).view_as(x)
    step = L1Ball(x, eps).ascent(gradient, x).flatten()
    torch.testing.assert_close(step, (torch.arange(100) < moved) / moved)


def test_steps_in_l1_pass_by_what_a_wall_holds():
    x = torch.full((1, 1, 1, 6), 0.5)
    gradient = torch.tensor([6.0, -5, 4, -3, 2, 0]).view_as(x)
    walls = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5]).view_as(x)
    assert L1Ball(x, 2.0).ascent(gradient, walls).flatten().tolist() == [0, 0, 0.5, -0.5, 0, 0]
    assert L1Ball(x, 4.0).ascent(gradient, walls).flatten().tolist() == [0, 0, 0.25, -0.25, 0.25, 0]


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2), ("L1", torch.inf)])
def test_pgd_finds_the_worst_case_of_a_linear_model(norm, dual):
    """Away from the walls the margin of f = [w x, 0] falls by eps times the dual norm of w."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    w = torch.randn(16, generator=torch.Generator().manual_seed(3))
    net[1].weight.data = torch.stack([w, torch.zeros(16)])
    x, y, eps = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0]), 0.2
    worst = softplus(-(w.sum() / 2 - eps * torch.linalg.vector_norm(w, dual)))
    measured = hookflat.robust_loss(net, (x, y), norm=norm, eps=eps, step_size=0.05, steps=40, restarts=1)
    assert measured.loss == pytest.approx(worst.item(), abs=1e-4)


def test_other_norms_are_named():
    with pytest.raises(ValueError, match="Linf, L2, L1, not L3"):
        Threat(0.1, "L3").ball(torch.rand(1, 1, 2, 2))
