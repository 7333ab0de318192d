"""Hessian, sharpness and relative flatness against matrices written out."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

import hookflat
from hookflat.functional.neighborhood import layers

ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 3}


def softmax_regression(inputs, classes, n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double()
    net[1].weight.data = torch.randn(classes, inputs, generator=generator).double()
    x = torch.rand(n, 1, 1, inputs, generator=generator).double()
    return net, x, torch.randint(classes, (n,), generator=generator)


def exact_hessian(net, x):
    """mean (diag(p) - p p^T) kron x x^T, by the weights of softmax regression."""
    z = x.flatten(1)
    p = net(x).softmax(dim=1).detach()
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nst,ni,nj->sitj", blocks, z, z).flatten(2).flatten(0, 1).numpy() / len(x)


@pytest.mark.parametrize(("inputs", "classes"), [(3, 3), (20, 5)], ids=["dense", "lanczos"])
def test_eigenvalues_and_trace_of_softmax_regression_are_exact(inputs, classes):
    net, x, y = softmax_regression(inputs, classes)
    expected = np.linalg.eigvalsh(exact_hessian(net, x))
    eigenvalues = hookflat.hessian_eigenvalues(net, (x, y), k=3, robust=False, tolerance=1e-6)
    assert eigenvalues.largest == pytest.approx(expected[::-1][:3], rel=1e-4)
    assert eigenvalues.smallest == pytest.approx(expected[0], abs=1e-5)
    assert eigenvalues.ratio == pytest.approx(abs(eigenvalues.smallest) / eigenvalues.largest[0])
    trace = hookflat.hessian_trace(net, (x, y), samples=400, robust=False)
    assert trace.trace == pytest.approx(expected.sum(), abs=4 * trace.standard_error)
    assert trace.standard_error < 0.1 * expected.sum()


def test_the_smallest_eigenvalue_of_a_convex_loss_is_found_although_it_is_zero():
    """Relative to itself, as ARPACK has it, no accuracy would do."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    x, y = torch.rand(40, 1, 4, 4, generator=generator), torch.randint(10, (40,), generator=generator)
    eigenvalues = hookflat.hessian_eigenvalues(net, (x, y), k=1, robust=False, tolerance=1e-2)
    assert eigenvalues.smallest == pytest.approx(0, abs=0.02 * eigenvalues.largest[0])
    assert eigenvalues.largest[0] > 0.1


def test_the_robust_hessian_is_that_at_the_adversarial_examples():
    net, x, y = softmax_regression(3, 3)
    attack = {"eps": 0.05, "step_size": 0.05, "steps": 2, "start": "zero"}
    x_adv = hookflat.pgd(net, x, y, **attack)
    expected = np.linalg.eigvalsh(exact_hessian(net, x_adv))
    eigenvalues = hookflat.hessian_eigenvalues(net, (x, y), k=2, tolerance=1e-6, **attack)
    assert eigenvalues.largest == pytest.approx(expected[::-1][:2], rel=1e-6)
    clean = hookflat.hessian_eigenvalues(net, (x, y), k=2, robust=False)
    assert abs(clean.largest[0] / eigenvalues.largest[0] - 1) > 1e-3


class Bend(nn.Module):
    """Logits [a x - b x^2, 0] with weights a, b of a linear layer: the inner maximum lies at x = a / 2b."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False).double()
        self.linear.weight.data = torch.tensor([[1.0, 1.0]]).double()

    def forward(self, x):
        z = x.flatten(1)
        logit = self.linear(torch.cat([z, -z.square()], dim=1))
        return torch.cat([logit, torch.zeros_like(logit)], dim=1)


def test_remaximised_eigenvalues_see_the_inner_maximum_move():
    """max over x of softplus(a x - b x^2) = softplus(a^2 / 4b), whose Hessian by (a, b) is another than at fixed x."""
    net, y = Bend(), torch.tensor([1])
    x = torch.full((1, 1, 1, 1), 0.4996).double()
    attack = {"eps": 0.01, "step_size": 2e-6, "steps": 600, "start": "zero", "restarts": 1}
    w = torch.tensor([1.0, 1.0]).double()
    expected = np.linalg.eigvalsh(torch.func.hessian(lambda w: softplus(w[0] ** 2 / (4 * w[1])))(w).numpy())
    fixed = np.linalg.eigvalsh(torch.func.hessian(lambda w: softplus(0.5 * w[0] - 0.25 * w[1]))(w).numpy())
    eigenvalues = hookflat.hessian_eigenvalues(net, (x, y), k=1, remaximise=True, **attack)
    assert eigenvalues.largest[0] == pytest.approx(expected[-1], rel=0.02)
    held = hookflat.hessian_eigenvalues(net, (x, y), k=1, **attack)
    assert held.largest[0] == pytest.approx(fixed[-1], rel=1e-3)
    assert abs(expected[-1] / fixed[-1] - 1) > 0.5


def test_remaximised_equals_fixed_for_a_linear_model():
    """Its worst x - eps sign(d) stays where it is when the weights move a little."""
    net, x, y = softmax_regression(4, 2)
    attack = {"eps": 0.01, "step_size": 0.01, "steps": 3, "start": "zero"}
    x = 0.25 + 0.5 * x
    fixed, moving = (hookflat.hessian_eigenvalues(net, (x, y), k=2, remaximise=r, **attack) for r in (False, True))
    assert moving.largest == pytest.approx(fixed.largest, rel=1e-3)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_is_the_rise_after_one_step_of_ascent(adaptive):
    net, x, y = softmax_regression(4, 3)
    measured = hookflat.sharpness(net, (x, y), rho=0.3, adaptive=adaptive, robust=False)
    weights = [net[1].weight, net[1].bias]
    gradients = torch.autograd.grad(cross_entropy(net(x), y), weights)
    t = [
        net[1].weight.abs() if adaptive else torch.ones_like(net[1].weight),
        net[1].bias.abs() if adaptive else torch.ones(3).double(),
    ]
    norm = math.sqrt(sum((s * g).square().sum().item() for s, g in zip(t, gradients, strict=True)))
    moved = [w + 0.3 * s**2 * g / norm for w, s, g in zip(weights, t, gradients, strict=True)]
    after = cross_entropy(x.flatten(1) @ moved[0].T + moved[1], y).item()
    assert measured.reference == pytest.approx(cross_entropy(net(x), y).item(), rel=1e-9)
    assert measured.sharpness == pytest.approx(after - measured.reference, rel=1e-6)


def test_robust_sharpness_attacks_before_and_after_the_step(digits_net, digits_pair):
    options = {**ATTACK, "start": "zero"}
    measured = hookflat.sharpness(digits_net, digits_pair, rho=0.05, **options)
    x, y = digits_pair
    assert measured.reference == pytest.approx(
        hookflat.robust_loss(digits_net, digits_pair, restarts=1, **options).loss, rel=1e-4
    )
    net = copy.deepcopy(digits_net)
    weights = list(layers(net).values())
    x_adv = hookflat.pgd(net, x, y, **options)
    gradients = torch.autograd.grad(cross_entropy(net(x_adv), y), weights)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w += 0.05 * g / norm
    x_adv = hookflat.pgd(net, x, y, **options)
    assert measured.sharpness == pytest.approx(cross_entropy(net(x_adv), y).item() - measured.reference, rel=1e-2)


def test_relative_flatness_is_petzka_s_sum_over_the_blocks_of_the_hessian():
    """sum over s, s' of <w_s, w_s'> tr(H_ss'), the Hessian by autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.rand(10, 1, 2, 3).double(), torch.randint(3, (10,))
    phi = net[:3](x).detach()
    weight, bias = net[3].weight.detach(), net[3].bias.detach()
    hessian = torch.func.hessian(lambda w: cross_entropy(phi @ w.T + bias, y))(weight)
    traces = torch.einsum("siti->st", hessian)
    expected = (traces * (weight @ weight.T)).sum().item()
    assert hookflat.relative_flatness(net, (x, y), robust=False) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():  # the same function, another scale of the last layer
        net[1].weight *= 2
        net[1].bias *= 2
        net[3].weight /= 2
    assert hookflat.relative_flatness(net, (x, y), robust=False) == pytest.approx(expected, rel=1e-9)


def test_relative_flatness_takes_convolutional_classifiers_and_refuses_other_ends(digits_net, digits_pair):
    x, y = digits_pair
    body = copy.deepcopy(digits_net)
    linear = body.fc
    body.fc = nn.Identity()
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.data, conv.bias.data = linear.weight.data[..., None, None], linear.bias.data
    as_conv = nn.Sequential(body, nn.Unflatten(1, (linear.in_features, 1, 1)), conv, nn.Flatten())
    expected = hookflat.relative_flatness(digits_net, (x, y), **ATTACK)
    assert hookflat.relative_flatness(as_conv, (x, y), **ATTACK) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="straight from a linear layer"):
        hookflat.relative_flatness(nn.Sequential(digits_net, nn.Softplus()), (x, y), **ATTACK)


MEASURES = {
    "eigenvalues": lambda net, data: hookflat.hessian_eigenvalues(net, data, k=1, tolerance=1e-2, **ATTACK).largest[0],
    "trace": lambda net, data: hookflat.hessian_trace(net, data, samples=2, **ATTACK).trace,
    "sharpness": lambda net, data: hookflat.sharpness(net, data, **ATTACK).sharpness,
    "relative": lambda net, data: hookflat.relative_flatness(net, data, **ATTACK),
}


@pytest.mark.parametrize("name", MEASURES)
def test_does_not_depend_on_how_the_loader_batches(digits_net, digits_pair, name):
    x, y = (t[:12] for t in digits_pair)
    pieces = list(zip(x.split(5), y.split(5), strict=True))
    one, many = MEASURES[name](digits_net, (x, y)), MEASURES[name](digits_net, pieces)
    assert many == pytest.approx(one, rel=1e-4)


def test_rescaling_changes_the_hessian_but_not_relative_flatness(digits_net, digits_pair):
    """Twice the weights of the convolutions: a quarter of their curvature, nothing of what is relative."""
    scaled = copy.deepcopy(digits_net)
    hookflat.rescale(scaled, 2.0)
    relative = [MEASURES["relative"](m, digits_pair) for m in (digits_net, scaled)]
    assert relative[1] == pytest.approx(relative[0], rel=1e-3)
    trace = [MEASURES["trace"](m, digits_pair) for m in (digits_net, scaled)]
    assert trace[1] < 0.9 * trace[0]
