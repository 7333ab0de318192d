"""Average-case and worst-case flatness against closed forms, and against their definitions written out."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

import hookflat
from hookflat.functional import seeds
from hookflat.functional.flatness import adversarial_direction
from hookflat.functional.neighborhood import ball, layers, scaled_to, sphere
from hookflat.functional.threats import Attack, Threat
from hookflat.functional.work import Work

ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 3}


def linear(seed=1, inputs=16):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2, bias=False)).double()
    net[1].weight.data = torch.randn(2, inputs, generator=generator).double()
    x = 0.3 + 0.4 * torch.rand(1, 1, 4, inputs // 4, generator=generator).double()
    return net, x, torch.tensor([0])


# --- average case ---------------------------------------------------------------------------------------------------


def test_flatness_is_zero_without_perturbation_and_grows_with_it(digits_net, digits_pair):
    options = {**ATTACK, "samples": 3, "reference_restarts": 1}
    pair = tuple(t[:20] for t in digits_pair)
    zero = hookflat.average_flatness(digits_net, pair, xi=0, **options)
    assert zero.reference == hookflat.robust_loss(digits_net, pair, restarts=1, **ATTACK).loss
    assert zero.flatness == pytest.approx(0, abs=0.1)  # other random starts, the same weights
    small, large = (hookflat.average_flatness(digits_net, pair, xi=xi, **options).flatness for xi in (0.4, 1.0))
    assert zero.flatness < small < large


@pytest.mark.parametrize("measure", ["average", "worst"])
@pytest.mark.parametrize("robust", [True, False])
def test_flatness_is_exactly_zero_at_xi_zero_where_attacks_do_nothing(digits_net, digits_pair, measure, robust):
    options = {"xi": 0, "eps": 0.0, "start": "zero", "steps": 2}
    if measure == "average":
        restarts = {} if robust else {"restarts": 0, "reference_restarts": 0}
        f = hookflat.average_flatness(digits_net, digits_pair, samples=2, **options, **restarts)
    else:
        f = hookflat.worst_flatness(digits_net, digits_pair, attempts=2, sweeps=2, robust=robust, **options)
    assert f.flatness == pytest.approx(0, abs=1e-6)
    assert f.standard_error == pytest.approx(0, abs=1e-6)


def test_average_flatness_of_a_logistic_loss_against_a_large_sample():
    """f = [w x, 0], one pixel, no attack: E CE over the sphere of two dimensions."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[1].weight.data = torch.tensor([[2.0], [0.0]])
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    f = hookflat.average_flatness(net, (x, y), xi=1.0, samples=1500, eps=0, steps=1, reference_restarts=1)
    direction = torch.randn(1_000_000, 2)
    nu = direction / direction.norm(dim=1, keepdim=True)
    expected = softplus(-(2 + 2 * (nu[:, 0] - nu[:, 1]))).mean().item() - math.log1p(math.exp(-2))
    assert f.flatness == pytest.approx(expected, abs=4 * f.standard_error + 1e-3)
    assert f.standard_error < 0.05 * expected


@pytest.mark.parametrize("filters", [False, True])
def test_average_flatness_equals_the_definition_written_out(digits_net, digits_pair, filters):
    """Eq. 1 on a network with batch norm, without views: perturb a copy, attack it, average, subtract."""
    x, y = digits_pair
    options = {**ATTACK, "start": "zero"}
    chosen = {"xi": 0.3, "samples": 3, "filters": filters, "reference_restarts": 1, "seed": 5}
    ours = hookflat.average_flatness(digits_net, (x, y), **chosen, **options)

    def rloss(model):
        x_adv = hookflat.pgd(model, x, y, **options)
        return cross_entropy(model.eval()(x_adv), y).item()

    losses = []
    for sample in range(3):
        copied = copy.deepcopy(digits_net)
        generator = seeds.generator(5, "average_flatness", sample)
        weights = list(layers(copied).values())
        for w, direction in zip(weights, hookflat.normals_like(weights, generator), strict=True):
            for part, g in zip(rows(w.data, filters), rows(direction, filters), strict=True):
                part += 0.3 * part.norm() * g / g.norm().clamp_min(1e-12)
        losses.append(rloss(copied))
    assert ours.losses == pytest.approx(losses, rel=1e-3)
    assert ours.flatness == pytest.approx(sum(losses) / 3 - rloss(copy.deepcopy(digits_net)), abs=1e-3)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("Linf", 0.05, 1), ("L2", 0.2, 2), ("L1", 0.2, torch.inf)])
def test_average_flatness_of_a_linear_model_in_closed_form(norm, eps, dual):
    """Away from the walls the margin d x of a linear model falls by eps times the dual norm of d."""
    net, x, y = linear()

    def rloss(w):
        d = w[0] - w[1]
        return softplus(eps * torch.linalg.vector_norm(d, dual) - d @ x.flatten()).item()

    w = net[1].weight.detach().clone()
    nus = [sphere([w], 0.3, seeds.generator(0, "average_flatness", sample))[0] for sample in range(3)]
    f = hookflat.average_flatness(net, (x, y), xi=0.3, samples=3, norm=norm, eps=eps, step_size=eps, steps=30)
    assert f.losses == pytest.approx([rloss(w + nu) for nu in nus], rel=1e-6)
    assert f.reference == pytest.approx(rloss(w), rel=1e-6)


def test_clean_flatness_is_that_of_the_cross_entropy(digits_net, digits_pair):
    x, y = digits_pair
    options = {"xi": 0.3, "samples": 2, "restarts": 0, "reference_restarts": 0, "seed": 5}
    ours = hookflat.average_flatness(digits_net, (x, y), **options)
    assert ours.reference == pytest.approx(cross_entropy(digits_net(x), y).item(), abs=1e-5)
    copied = copy.deepcopy(digits_net)
    weights = list(layers(copied).values())
    nu = sphere(weights, 0.3, seeds.generator(5, "average_flatness", 1))
    with torch.no_grad():
        for w, n in zip(weights, nu, strict=True):
            w += n
        assert ours.losses[1] == pytest.approx(cross_entropy(copied(x), y).item(), abs=1e-5)


# --- worst case -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_worst_flatness_of_a_linear_model_in_closed_form(eps):
    """Over ||nu|| <= r and ||delta||_inf <= eps the margin falls by eps ||d||_1 and r sqrt(2) ||x_adv||.

    d, the difference of the two rows, keeps its signs within so small a ball, so x_adv = x - eps sign(d) throughout.
    """
    net, x, y = linear()
    w = net[1].weight.data
    d, xi = w[0] - w[1], 0.003
    x_adv = x.flatten() - eps * d.sign()
    margin = d @ x_adv
    worst = margin - xi * w.norm() * math.sqrt(2) * x_adv.norm()
    expected = (softplus(-worst) - softplus(-margin)).item()
    assert bool((d.abs() > xi * w.norm() * math.sqrt(2)).all())
    f = hookflat.worst_flatness(net, (x, y), xi=xi, attempts=2, sweeps=20, eps=eps, step_size=0.007, restarts=1)
    assert f.flatness == pytest.approx(expected, rel=1e-5)
    clean = hookflat.worst_flatness(net, (x, y), xi=xi, attempts=2, sweeps=20, robust=False)
    if not eps:
        assert clean.flatness == pytest.approx(expected, rel=1e-5)


def test_worst_flatness_of_a_linear_model_in_l2():
    """The margin u x_adv, ||u - d|| <= r sqrt(2), ||x_adv - x|| <= eps, is least where each goes against the other."""
    net, x, y = linear()
    w, eps, xi = net[1].weight.data, 0.2, 0.003
    d, x = w[0] - w[1], x.flatten()
    u = d
    for _ in range(100):  # contracts
        x_adv = x - eps * u / u.norm()
        u = d - xi * w.norm() * math.sqrt(2) * x_adv / x_adv.norm()
    expected = (softplus(-u @ x_adv) - softplus(eps * d.norm() - d @ x)).item()
    options = {"norm": "L2", "eps": eps, "step_size": 0.2, "restarts": 1}
    f = hookflat.worst_flatness(net, (x.view(1, 1, 4, 4), y), xi=xi, attempts=2, sweeps=40, **options)
    assert f.flatness == pytest.approx(expected, rel=1e-5)


def rows(tensor, filters):
    return list(tensor) if filters and tensor.dim() == 4 else [tensor]


@pytest.mark.parametrize("filters", [False, True])
def test_worst_flatness_equals_the_protocol_written_out(digits_net, digits_pair, filters):
    """Section 1.6, step by step, on a copy without views or accumulation: batches of 16, then 8."""
    x, y = digits_pair
    options = {"xi": 0.05, "sweeps": 3, "weight_step_size": 0.01, "filters": filters}
    ours = hookflat.worst_flatness(
        digits_net, (x, y), attempts=2, batch_size=16, eps=0.1, step_size=0.03, seed=3, reference=1.0, **options
    )
    losses = []
    for attempt in range(2):
        net = copy.deepcopy(digits_net).eval()
        weights = list(layers(net).values())
        base = [w.detach().clone() for w in weights]
        nu = ball(weights, 0.05, seeds.generator(3, "worst_flatness", attempt), filters=filters)
        draw = seeds.derive_seed(3, "inputs at perturbed weights", attempt)
        x_adv = Threat(0.1).ball(x).start("uniform_norm", torch.arange(40), draw)
        for _ in range(3):
            for batch in torch.arange(40).split(16):
                for w, b, n in zip(weights, base, nu, strict=True):
                    w.data = b + n
                z = x_adv[batch].clone().requires_grad_()
                gradients = torch.autograd.grad(cross_entropy(net(z), y[batch]), [*weights, z])
                for whole in zip(base, gradients[:-1], nu, strict=True):
                    for b, g, n in zip(*(rows(t, filters) for t in whole), strict=True):
                        if g.norm() > 0:
                            n += 0.01 * b.norm() * g / g.norm()
                        if n.norm() > 0.05 * b.norm():
                            n *= 0.05 * b.norm() / n.norm()
                delta = (x_adv[batch] + 0.03 * gradients[-1].sign() - x[batch]).clamp(-0.1, 0.1)
                x_adv[batch] = (x[batch] + delta).clamp(0, 1)
        for w, b, n in zip(weights, base, nu, strict=True):
            w.data = b + n
        losses.append(cross_entropy(net(x_adv), y).item())
    assert ours.losses == pytest.approx(losses, rel=1e-3)
    assert ours.flatness == max(ours.losses) - 1.0


def test_worst_is_at_least_average_and_both_grow_with_xi(digits_net, digits_pair):
    reference = hookflat.robust_loss(digits_net, digits_pair, restarts=2, **ATTACK).loss
    worst, average = [], []
    for xi in (0.01, 0.03, 0.1):
        options = {"xi": xi, "reference": reference, "eps": 0.1, "step_size": 0.04}
        worst.append(hookflat.worst_flatness(digits_net, digits_pair, attempts=2, sweeps=10, **options))
        average.append(hookflat.average_flatness(digits_net, digits_pair, samples=4, steps=5, **options))
    assert all(w.flatness > a.flatness for w, a in zip(worst, average, strict=True))
    for measured in (worst, average):
        for small, large in pairwise(measured):
            assert large.flatness > small.flatness - 2 * (small.standard_error + large.standard_error)
    assert worst[-1].flatness > worst[0].flatness


def test_clean_worst_case_takes_the_weights_of_the_worst_sweep(digits_net, digits_pair):
    """Section 1.7: the weights before the last batch of the sweep whose mean loss was largest, at any length."""
    options = {"xi": 0.1, "attempts": 1, "robust": False, "batch_size": 16, "weight_step_size": 0.03}
    losses = [hookflat.worst_flatness(digits_net, digits_pair, sweeps=s, **options).flatness for s in (1, 4, 12)]
    assert 0 < losses[0] < losses[1] <= losses[2] + 1e-6


def test_an_adversarial_direction_raises_the_loss_faster_than_a_random_one(digits_net, digits_pair):
    x, y = digits_pair
    weights = list(layers(digits_net).values())
    adversarial = adversarial_direction(
        digits_net, digits_pair, xi=0.05, attack=Attack(Threat(0.1), step_size=0.04, steps=3)
    )
    random = sphere(weights, 0.05, torch.Generator().manual_seed(0))

    def rise(direction):
        net = copy.deepcopy(digits_net)
        with torch.no_grad():
            for w, d in zip(layers(net).values(), direction, strict=True):
                w += d
        x_adv = hookflat.pgd(net, x, y, **ATTACK)
        return cross_entropy(net(x_adv), y).item()

    for d, w in zip(adversarial, weights, strict=True):
        assert d.norm().item() == pytest.approx(0.05 * w.norm().item(), rel=1e-4, abs=1e-9)
    assert rise(adversarial) > 2 * rise(random)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 40])
def test_worst_flatness_does_not_depend_on_how_the_loader_batches(digits_net, digits_pair, batch):
    x, y = digits_pair
    options = {
        "xi": 0.02,
        "attempts": 1,
        "sweeps": 3,
        "batch_size": 16,
        "reference": 0.0,
        "eps": 0.1,
        "step_size": 0.03,
    }
    whole = hookflat.worst_flatness(digits_net, (x, y), **options)
    pieces = list(zip(x.split(batch), y.split(batch), strict=True))
    assert hookflat.worst_flatness(digits_net, pieces, **options).flatness == pytest.approx(whole.flatness, abs=1e-5)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_rescaling_changes_neither(digits_net, digits_pair, factor):
    """Eq. 2 is relative per layer: the scaled network computes the same function and is equally flat."""
    scaled = copy.deepcopy(digits_net)
    hookflat.rescale(scaled, factor)
    options = {**ATTACK, "samples": 3, "reference_restarts": 2}
    f, g = (hookflat.average_flatness(m, digits_pair, **options) for m in (digits_net, scaled))
    assert g.flatness == pytest.approx(f.flatness, rel=1e-4, abs=1e-4)
    assert g.reference == pytest.approx(f.reference, rel=1e-4)
    options = {"xi": 0.01, "attempts": 2, "sweeps": 5, "eps": 0.1, "step_size": 0.03, "reference": 0.0}
    f, g = (hookflat.worst_flatness(m, digits_pair, **options) for m in (digits_net, scaled))
    assert g.flatness == pytest.approx(f.flatness, rel=1e-4, abs=1e-4)


def test_scaled_to_by_filter_gives_each_filter_its_own_length():
    w = [torch.randn(4, 3, 2, 2), torch.randn(5, 6), torch.randn(5)]
    d = scaled_to([torch.randn_like(t) for t in w], w, 0.3, filters=True)
    for i in range(4):
        assert d[0][i].norm().item() == pytest.approx(0.3 * w[0][i].norm().item(), rel=1e-5)
    for direction, weight in zip(d[1:], w[1:], strict=True):
        assert direction.norm().item() == pytest.approx(0.3 * weight.norm().item(), rel=1e-5)
    zero = scaled_to([torch.randn(4, 3, 2, 2)], [torch.zeros(4, 3, 2, 2)], 0.3, filters=True)[0]
    assert not zero.any()


def test_interrupted_measures_go_on_where_they_stopped(tmp_path, digits_net, digits_pair):
    options = {"xi": 0.02, "reference": 0.0, "eps": 0.1, "step_size": 0.03}
    calls = {
        "average": lambda **k: hookflat.average_flatness(digits_net, digits_pair, samples=3, steps=2, **options, **k),
        "worst": lambda **k: hookflat.worst_flatness(digits_net, digits_pair, attempts=3, sweeps=2, **options, **k),
    }
    for name, measure in calls.items():
        whole = measure()
        begun, again = Work(tmp_path / name), Work(tmp_path / name)

        def stop(tally):
            if tally.passes > 170:
                raise KeyboardInterrupt

        begun.tally.changed = stop
        with pytest.raises(KeyboardInterrupt):
            measure(work=begun)
        kept = len(list(tmp_path.glob(f"{name}/**/*.safetensors")))
        assert kept >= 1
        measured = measure(work=again)
        assert measured.losses == whole.losses
        assert again.tally.seconds_before > 0
