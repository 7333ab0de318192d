"""The critics' measures against closed forms on linear networks, and against definitions written out."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

import hookflat
from hookflat.functional.adaptive_sharpness import checkpoints
from hookflat.functional.attack_view import conv_norm_pairs
from hookflat.functional.layers import NormalizedLogits
from hookflat.functional.neighborhood import layers

ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 3}


class Logistic(nn.Module):
    """Logits [w x, 0] with one weight for each pixel."""

    def __init__(self, weights):
        super().__init__()
        self.linear = nn.Linear(len(weights), 1, bias=False).double()
        self.linear.weight.data = torch.tensor([weights]).double()

    def forward(self, x):
        z = self.linear(x.flatten(1))
        return torch.cat([z, torch.zeros_like(z)], dim=1)


def logistic():
    """A network, one image and its label 1: the loss is softplus(w x)."""
    w, x = [1.0, -2.0, 0.5, 0.25], torch.tensor([0.4, 0.3, 0.5, 0.6]).double().view(1, 1, 2, 2)
    return Logistic(w), x, torch.tensor([1]), torch.tensor(w).double(), x.flatten()


# --- adaptive sharpness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(("weight_norm", "dual"), [("L2", 2), ("Linf", 1)])
def test_worst_case_sharpness_of_a_linear_network_is_the_dual_norm(weight_norm, dual, adaptive):
    """sup over ||u||_p <= rho of softplus(w x + (c u) x) = softplus(w x + rho ||c x||_q)."""
    net, x, y, w, z = logistic()
    c = w.abs() if adaptive else torch.ones(4).double()
    rise = softplus(w @ z + 0.3 * (c * z).norm(p=dual)) - softplus(w @ z)
    options = {"rho": 0.3, "weight_norm": weight_norm, "adaptive": adaptive, "robust": False}
    measured = hookflat.worst_sharpness(net, (x, y), **options)
    assert measured.sharpness == pytest.approx(rise.item(), rel=1e-3)
    assert measured.reference == pytest.approx(softplus(w @ z).item(), rel=1e-9)


def test_worst_case_sharpness_of_the_robust_loss_has_both_dual_norms():
    """The input adds eps ||w||_1, and moves the point at which the weights are perturbed: at the corner of the cube."""
    net, x, y, w, z = logistic()
    corner = z + 0.01 * w.sign()
    expected = softplus(w @ corner + 0.1 * (w * corner).abs().sum()) - softplus(w @ corner)
    options = {"eps": 0.01, "step_size": 0.01, "steps": 3, "start": "zero"}
    measured = hookflat.worst_sharpness(net, (x, y), rho=0.1, weight_norm="Linf", **options)
    assert measured.sharpness == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("weight_norm", ["L2", "Linf"])
def test_average_case_sharpness_of_a_linear_network_against_a_large_sample(weight_norm):
    """E softplus(w x + rho (w x) u), u Gaussian or uniform in [-1, 1]."""
    net, x, y, w, z = logistic()
    options = {"weight_norm": weight_norm, "robust": False, "samples": 300}
    measured = hookflat.average_sharpness(net, (x, y), rho=3.0, **options)
    u = torch.randn(400_000, 4).double() if weight_norm == "L2" else 2 * torch.rand(400_000, 4).double() - 1
    expected = (softplus(w @ z + 3 * u @ (w * z)).mean() - softplus(w @ z)).item()
    assert measured.flatness == pytest.approx(expected, abs=3 * measured.standard_error)
    assert measured.standard_error < 0.25 * expected


def test_average_case_sharpness_moves_every_weight_by_its_own_size(digits_net, digits_pair):
    x, y = digits_pair
    measured = hookflat.average_sharpness(digits_net, (x, y), rho=0.1, samples=1, robust=False, seed=5)
    copied = copy.deepcopy(digits_net)
    from hookflat.functional import seeds

    parameters = list(copied.parameters())
    draws = hookflat.normals_like([p.detach() for p in parameters], seeds.generator(5, "average_sharpness", 0))
    centred = {id(m.weight): 1 + m.weight.detach() for m in copied.modules() if "Recentered" in type(m).__name__}
    with torch.no_grad():
        for p, draw in zip(parameters, draws, strict=True):
            p += 0.1 * centred.get(id(p), p).abs() * draw
        assert measured.losses[0] == pytest.approx(cross_entropy(copied(x), y).item(), rel=1e-4)


def test_the_checkpoints_of_apgd_are_those_of_the_authors_code():
    """p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06), times the iterations, rounded up."""
    assert checkpoints(20)[:3] == [5, 9, 12]
    assert checkpoints(50)[:2] == [11, 21]
    assert checkpoints(20)[-1] == 20


def test_normalised_logits_do_not_see_the_scale_of_the_logits(digits_net, digits_pair):
    x, _ = digits_pair
    logits = NormalizedLogits(digits_net)(x)
    assert torch.allclose(logits.norm(dim=1), torch.ones(len(x)))
    scaled = copy.deepcopy(digits_net)
    scaled.fc.weight.data *= 7
    scaled.fc.bias.data *= 7
    options = {"rho": 0.05, "samples": 2, "robust": False}
    for normalize, same in ((True, True), (False, False)):
        one, other = (
            hookflat.average_sharpness(n, digits_pair, normalize_logits=normalize, **options).flatness
            for n in (digits_net, scaled)
        )
        assert (other == pytest.approx(one, rel=1e-3)) == same


def test_adaptive_sharpness_is_zero_without_radius_and_does_not_see_rescaling(digits_net, digits_pair):
    pair = tuple(t[:10] for t in digits_pair)
    options = {**ATTACK, "start": "zero"}
    worst = {"iterations": 4, "batch_size": 7, **options}
    assert hookflat.worst_sharpness(digits_net, pair, rho=0, **worst).sharpness == pytest.approx(0, abs=1e-5)
    assert hookflat.average_sharpness(digits_net, pair, rho=0, samples=2, **options).flatness == pytest.approx(
        0, abs=1e-5
    )
    scaled = copy.deepcopy(digits_net)
    hookflat.rescale(scaled, 3.0)
    for norm, rho in (("L2", 0.5), ("Linf", 0.01)):
        for adaptive in (True, False):
            one, other = (
                hookflat.worst_sharpness(n, pair, rho=rho, weight_norm=norm, adaptive=adaptive, **worst).sharpness
                for n in (digits_net, scaled)
            )
            assert one > 0.01
            assert (other == pytest.approx(one, rel=0.05)) == adaptive


def test_worst_case_sharpness_is_at_least_a_single_sam_step_and_never_below_zero(digits_net, digits_pair):
    x, y = digits_pair
    options = {"rho": 0.05, "robust": False}
    norms_too = hookflat.worst_sharpness(digits_net, (x, y), weight_norm="L2", adaptive=False, **options)
    assert norms_too.sharpness >= hookflat.sharpness(digits_net, (x, y), **options).sharpness > 0
    once = hookflat.worst_sharpness(digits_net, (x, y), batch_size=10, weight_norm="L2", adaptive=False, **options)
    assert once.sharpness >= norms_too.sharpness  # fewer examples share a worst case


# --- input space ------------------------------------------------------------------------------------------------------


def linear(classes=3, inputs=4, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double()
    net[1].weight.data = torch.randn(classes, inputs, generator=generator).double()
    x = 0.3 + 0.4 * torch.rand(n, 1, 1, inputs, generator=generator).double()
    return net, x, torch.randint(classes, (n,), generator=generator)


def test_margins_and_confidence_by_hand():
    net, x, y = linear()
    measured = hookflat.margins(net, (x, y), robust=False)
    for i, z in enumerate(net(x).detach().numpy()):
        others = [k for k in range(3) if k != y[i]]
        p = np.exp(z) / np.exp(z).sum()
        assert measured.logit[i].item() == pytest.approx(z[y[i]] - z[others].max())
        assert measured.probability[i].item() == pytest.approx(p[y[i]] - p[others].max())
        assert measured.confidence[i].item() == pytest.approx(p.max())
        assert measured.wrong[i].item() == (z.argmax() != y[i])


def test_robust_margins_of_two_classes_lose_the_dual_norm():
    net, x, y = linear(classes=2)
    clean, robust = (
        hookflat.margins(net, (x, y), robust=r, eps=0.05, step_size=0.05, steps=2, start="zero") for r in (False, True)
    )
    d = (net[1].weight[0] - net[1].weight[1]).abs().sum().item()
    assert (clean.logit - robust.logit).tolist() == pytest.approx([0.05 * d] * len(x))


def test_input_gradients_of_softmax_regression_are_in_closed_form():
    net, x, y = linear()
    measured = hookflat.input_gradients(net, (x, y), robust=False)
    p = net(x).softmax(dim=1).detach()
    gradients = (p - torch.eye(3).double()[y]) @ net[1].weight.detach()
    assert torch.allclose(measured.l1, gradients.abs().sum(dim=1))
    assert torch.allclose(measured.l2, gradients.norm(dim=1))


def test_local_lipschitz_of_a_linear_network_is_that_of_its_best_corner():
    """max over sign vectors s of ||W s||_1, wherever the ball lies inside the pixels' range."""
    net, x, y = linear()
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
    expected = (corners @ net[1].weight.detach().T).abs().sum(dim=1).max().item()
    measured = hookflat.local_lipschitz(net, (x, y), eps=0.01, step_size=0.005, steps=10, restarts=8)
    assert measured.tolist() == pytest.approx([expected] * len(x), rel=1e-6)
    assert all(measured <= expected * (1 + 1e-9))
    kl = hookflat.local_lipschitz(net, (x, y), top="KL", eps=0.01, step_size=0.005, steps=10)
    assert all(kl < measured)  # second order in the distance


def test_boundary_thickness_of_logistic_regression_is_a_difference_of_inverses():
    """g = 2 sigma(d x) - 1 between two classes: alpha < g < beta where log((1 + g) / (1 - g)) is, over ||d||."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    net[1].weight.data = torch.tensor([[3.0, -2.0, 1.0, 2.0], [-3.0, 2.0, -1.0, -2.0]]).double()
    x = torch.tensor([0.7, 0.3, 0.6, 0.7]).double().view(1, 1, 2, 2)
    y = net(x).argmax(dim=1)
    d = (net[1].weight[0] - net[1].weight[1]).detach()
    reach = lambda g: math.log((1 + g) / (1 - g)) / d.norm().item()
    options = {"radius": 0.9, "step_size": 0.1, "steps": 12, "points": 1001}
    measured = hookflat.boundary_thickness(net, (x, y), alpha=0.1, beta=0.75, **options)
    assert net(x).diff().abs().item() > math.log(1.75 / 0.25)  # the image lies outside the boundary
    assert measured.item() == pytest.approx(reach(0.75) - reach(0.1), rel=1e-2)


# --- along the attack, spectrum, weights ------------------------------------------------------------------------------


def test_flatness_along_an_attack_begins_at_the_image_and_ends_at_pgd_s_last(digits_net, digits_pair):
    x, y = digits_pair
    options = {**ATTACK, "start": "zero"}
    measured = hookflat.flatness_along_attack(digits_net, digits_pair, xi=0.3, samples=2, seed=4, **options)
    x_adv = hookflat.pgd(digits_net, x, y, keep="last", **options)
    assert measured.relative.shape == (4, len(x))
    for t, at in ((0, x), (-1, x_adv)):
        expected = hookflat.relative_flatness(digits_net, (at, y), robust=False)
        assert measured.relative[t].mean().item() == pytest.approx(expected, rel=1e-3)
        assert measured.loss[t].mean().item() == pytest.approx(cross_entropy(digits_net(at), y).item(), rel=1e-3)
        assert torch.equal(measured.wrong[t], digits_net(at).argmax(dim=1) != y)
    from hookflat.functional import seeds

    copied, rises = copy.deepcopy(digits_net), []
    for sample in range(2):
        weights = list(layers(copied).values())
        nu = hookflat.sphere(weights, 0.3, seeds.generator(4, "flatness_along_attack", sample))
        with hookflat.moved(weights, nu), torch.no_grad():
            rises.append(cross_entropy(copied(x_adv), y).item())
    assert measured.rise[-1].mean().item() == pytest.approx(sum(rises) / 2 - measured.loss[-1].mean().item(), abs=1e-3)


def test_relative_flatness_vanishes_where_a_network_is_sure_although_it_is_wrong():
    """Walter et al.: the uncanny valley. Beyond the boundary the path runs into flat places."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    net[1].weight.data = torch.tensor([[40.0], [-40.0]]).double()
    shift = nn.Sequential(nn.Flatten(), nn.Linear(1, 1).double())
    shift[1].weight.data, shift[1].bias.data = torch.ones(1, 1).double(), torch.full((1,), -0.5).double()
    both = nn.Sequential(shift, net[1])
    x, y = torch.full((1, 1, 1, 1), 0.6).double(), torch.tensor([0])
    measured = hookflat.flatness_along_attack(both, (x, y), samples=1, eps=0.3, step_size=0.02, steps=15)
    path = measured.relative[:, 0]
    assert not measured.wrong[0]
    assert measured.wrong[-1]
    assert path.argmax() not in (0, 15)
    assert path[-1] < 0.01 * path.max()


def softmax_hessian(net, x):
    p, z = net(x).softmax(dim=1).detach(), x.flatten(1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nst,ni,nj->sitj", blocks, z, z).flatten(2).flatten(0, 1).numpy() / len(x)


def test_the_spectral_density_has_the_moments_of_the_spectrum():
    """Gauss quadrature from v is exact: sums of weights times eigenvalues^k are v H^k v / v v."""
    from hookflat.functional import seeds

    net, x, y = linear(classes=4, inputs=6, n=40)
    matrix = softmax_hessian(net, x)
    exact = np.linalg.eigvalsh(matrix)
    density = hookflat.hessian_density(net, (x, y), robust=False, probes=2, lanczos_steps=12)
    assert density.weights.sum().item() == pytest.approx(1)
    assert density.size == len(exact) == 24
    assert density.largest == pytest.approx(exact[-1], rel=1e-6)
    probes = [
        2.0 * torch.randint(0, 2, (24,), generator=seeds.generator(0, "hessian_density", i)).double().numpy() - 1
        for i in range(2)
    ]
    for k in (1, 2, 3, 5):
        expected = np.mean([v @ np.linalg.matrix_power(matrix, k) @ v / 24 for v in probes])
        assert (density.weights * density.values**k).sum().item() == pytest.approx(expected, rel=1e-6)
    squares = np.mean([np.square(matrix @ v).sum() for v in probes])
    assert density.frobenius == pytest.approx(math.sqrt(squares), rel=1e-6)
    grid = torch.linspace(-1, 2 * exact[-1], 5000).double()
    assert torch.trapezoid(density.at(grid, 0.01), grid).item() == pytest.approx(1, rel=1e-3)


MEASURES = {
    "average": lambda net, data: hookflat.average_sharpness(net, data, samples=2, **ATTACK).flatness,
    "filter": lambda net, data: hookflat.average_flatness(net, data, samples=2, filters=True, **ATTACK).flatness,
    "worst": lambda net, data: hookflat.worst_sharpness(net, data, iterations=2, batch_size=16, **ATTACK).sharpness,
    "margins": lambda net, data: hookflat.margins(net, data, **ATTACK).logit.mean().item(),
    "gradients": lambda net, data: hookflat.input_gradients(net, data, **ATTACK).l1.mean().item(),
    "lipschitz": lambda net, data: hookflat.local_lipschitz(net, data, **ATTACK).mean().item(),
    "thickness": lambda net, data: hookflat.boundary_thickness(net, data, points=8, steps=4).mean().item(),
    "along": lambda net, data: hookflat.flatness_along_attack(net, data, samples=1, **ATTACK).rise.mean().item(),
    "density": lambda net, data: hookflat.hessian_density(net, data, probes=1, lanczos_steps=4, **ATTACK).frobenius,
}


@pytest.mark.parametrize("name", MEASURES)
def test_does_not_depend_on_how_the_loader_batches(digits_net, digits_pair, name):
    x, y = (t[:20] for t in digits_pair)
    pieces = list(zip(x.split(7), y.split(7), strict=True))
    one, many = MEASURES[name](digits_net, (x, y)), MEASURES[name](digits_net, pieces)
    assert many == pytest.approx(one, rel=2e-2 if name == "worst" else 1e-3)


@pytest.mark.parametrize("name", ["average", "filter", "margins", "gradients", "lipschitz", "thickness", "along"])
def test_what_is_relative_to_the_weights_or_looks_at_the_function_alone_does_not_see_rescaling(
    digits_net, digits_pair, name
):
    scaled = copy.deepcopy(digits_net)
    hookflat.rescale(scaled, 2.0)
    assert MEASURES[name](scaled, digits_pair) == pytest.approx(MEASURES[name](digits_net, digits_pair), rel=2e-2)


def rescaled_throughout(net, factor):
    """Twice a network whose only trainable weights are those that `rescale` multiplies; as it is, and rescaled."""
    one = copy.deepcopy(net).double()
    moved = {conv.weight for conv, _ in conv_norm_pairs(one)}
    for p in one.parameters():
        p.requires_grad_(p in moved)
    other = copy.deepcopy(one)
    hookflat.rescale(other, factor)
    return one, other


def test_curvature_falls_with_the_square_of_the_scale_and_the_norm_of_the_weights_rises_with_it(
    digits_net, digits_pair
):
    """w -> a w at the same function: second derivatives by w are divided by a^2."""
    data = digits_pair[0][:8].double(), digits_pair[1][:8]
    one, other = rescaled_throughout(digits_net, 3.0)
    before, after = (
        {
            "largest": hookflat.hessian_eigenvalues(net, data, k=1, tolerance=0.05, robust=False).largest[0],
            "trace": hookflat.hessian_trace(net, data, samples=2, robust=False).trace,
            "frobenius": hookflat.hessian_density(net, data, probes=1, lanczos_steps=4, robust=False).frobenius,
            "norm": hookflat.weight_norm(net),
            "distance": hookflat.distance_from_initialization(net, {n: 0 * p for n, p in net.named_parameters()}),
        }
        for net in (one, other)
    )
    factors = {"largest": 1 / 9, "trace": 1 / 9, "frobenius": 1 / 9, "norm": 3, "distance": 3}
    assert {name: after[name] / before[name] for name in before} == pytest.approx(factors, rel=1e-4)


@pytest.mark.parametrize("weight_norm", ["L2", "Linf"])
def test_average_case_sharpness_that_is_not_adaptive_has_its_radius_in_units_of_the_weights(
    digits_net, digits_pair, weight_norm
):
    """At the scale a it is that of radius rho / a; the adaptive one is that of radius rho."""
    data = digits_pair[0].double(), digits_pair[1]
    one, other = rescaled_throughout(digits_net, 3.0)
    options = {"weight_norm": weight_norm, "samples": 2, "robust": False}
    for adaptive, rho, there in ((True, 0.3, 0.3), (False, 0.1, 0.3), (False, 0.3, 0.3)):
        measured = hookflat.average_sharpness(one, data, rho=rho, adaptive=adaptive, **options).flatness
        after = hookflat.average_sharpness(other, data, rho=there, adaptive=adaptive, **options).flatness
        assert abs(measured) > 0.01
        assert (after == pytest.approx(measured, rel=1e-4)) == (rho != there or adaptive)


@pytest.mark.parametrize("robust", [False, True])
def test_sharpness_of_one_step_has_its_radius_in_units_of_the_weights_unless_it_is_adaptive(
    digits_net, digits_pair, robust
):
    """At the scale a it is that of radius rho / a; the adaptive one is that of radius rho."""
    data = digits_pair[0].double(), digits_pair[1]
    one, other = rescaled_throughout(digits_net, 3.0)
    options = {"robust": robust, "eps": 0.1, "step_size": 0.05, "steps": 2, "start": "zero"}
    for adaptive, rho, there in ((True, 0.3, 0.3), (False, 0.1, 0.3), (False, 0.3, 0.3)):
        measured = hookflat.sharpness(one, data, rho=rho, adaptive=adaptive, **options).sharpness
        after = hookflat.sharpness(other, data, rho=there, adaptive=adaptive, **options).sharpness
        assert measured > 0.005
        assert (after == pytest.approx(measured, rel=1e-4)) == (rho != there or adaptive)


def test_the_norm_of_the_weights_is_that_of_convolutions_and_linear_layers():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 2))
    net[0].weight.data.fill_(3.0)
    net[1].weight.data.fill_(100.0)  # of a normalisation layer: not counted
    net[3].weight.data, net[3].bias.data = torch.tensor([[4.0], [0.0]]), torch.tensor([0.0, 12.0])
    assert hookflat.weight_norm(net) == pytest.approx(13)
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert hookflat.distance_from_initialization(net, initial) == 0
    initial["0.weight"] += 2
    initial["3.bias"] -= torch.tensor([1.0, 2.0])
    initial["1.bias"] += 50
    assert hookflat.distance_from_initialization(net, initial) == pytest.approx(3)
    initial["3.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"no initial weight of its shape for 0\.weight, 3\.bias"):
        hookflat.distance_from_initialization(net, {k: v for k, v in initial.items() if k != "0.weight"})


def test_the_distance_from_the_start_is_that_of_the_trained_weights(tmp_path):
    from safetensors.torch import load_file

    from hookflat.testing import run_recipe, tiny_run

    tables = {"eval": {"final": {"weight_norm": {}}}}
    result = run_recipe(tables, tmp_path / "run")
    with tiny_run(tables) as run:
        start = {name: w.detach().clone() for name, w in layers(run.network).items()}
    end = load_file(result.folder / "model.safetensors")
    measured = result.results.models["last"].test
    distance = math.sqrt(sum((end[n] - w).double().square().sum().item() for n, w in start.items()))
    assert distance > 0
    assert measured["distance_from_start"] == pytest.approx(distance, rel=1e-6)
    assert measured["weight_norm"] == pytest.approx(
        math.sqrt(sum(end[n].double().square().sum().item() for n in start)), rel=1e-6
    )
