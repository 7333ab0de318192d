import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hookflat
from hookflat import seeds
from hookflat.data import Examples, Images
from hookflat.neighborhood import layers
from hookflat.testing import Found
from hookflat_plugins.resnet_small import small_image_resnet

ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 3}


def images(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    return Images(levels, torch.randint(0, 10, (n,), generator=generator))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="rebn", act="relu")
    model.train()
    for _ in range(5):
        model(torch.rand(32, 1, 8, 8))
    return model


def pair(n=40):
    data = images(n)
    return data.x.float() / 255, data.y


def test_a_linear_models_robust_loss_and_error_in_closed_form():
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x, y = 0.25 + 0.5 * torch.rand(100, 1, 8, 8), torch.randint(0, 2, (100,))
    w, b = linear[1].weight.double(), linear[1].bias.double()
    sign = (2 * y - 1).double()
    margin = sign * (x.flatten(1).double() @ (w[1] - w[0]) + b[1] - b[0])
    worst = margin - 0.05 * (w[1] - w[0]).abs().sum()
    r = hookflat.robust_loss(linear, (x, y), eps=0.05, step_size=0.02, steps=10, restarts=2)
    assert r.loss == pytest.approx(torch.nn.functional.softplus(-worst).mean().item(), abs=1e-5)
    assert r.error == pytest.approx((worst < 0).double().mean().item())
    assert r.clean_error == pytest.approx((margin < 0).double().mean().item())
    assert r.per_example.loss.shape == (100,)


def test_robust_error_is_clean_or_any_restart_and_the_loss_is_the_largest(net):
    x, y = pair()
    separate = [hookflat.robust_loss(net, (x, y), restarts=r, **ATTACK).per_example for r in (1, 2, 3)]
    for fewer, more in pairwise(separate):
        assert (more.loss >= fewer.loss).all()
        assert (more.wrong | ~fewer.wrong).all()
    assert (separate[0].wrong | ~separate[0].clean_wrong).all()
    clean = hookflat.robust_loss(net, (x, y), restarts=0)
    assert clean.loss == pytest.approx(clean.per_example.clean_loss.mean().item())


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_does_not_depend_on_the_batch_size_or_the_kind_of_loader(net, batch):
    x, y = pair()
    reference = hookflat.robust_loss(net, (x, y), restarts=2, **ATTACK)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)
    other = hookflat.robust_loss(net, loader, restarts=2, **ATTACK)
    assert torch.allclose(reference.per_example.loss, other.per_example.loss, atol=1e-4)
    examples = hookflat.robust_loss(net, Examples(images(), batch_size=batch), restarts=2, **ATTACK)
    assert examples.loss == pytest.approx(reference.loss, abs=1e-5)


def test_flatness_is_zero_without_perturbation_and_grows_with_it(net):
    x, y = pair(20)
    options = {**ATTACK, "samples": 3, "reference_restarts": 1}
    zero = hookflat.average_flatness(net, (x, y), xi=0, **options)
    reference = hookflat.robust_loss(net, (x, y), restarts=1, **ATTACK).loss
    assert zero.reference == reference
    assert zero.flatness == pytest.approx(0, abs=0.02)  # other random starts, the same weights
    small, large = (hookflat.average_flatness(net, (x, y), xi=xi, **options).flatness for xi in (0.1, 1.0))
    assert zero.flatness < small < large


def test_flatness_is_exactly_zero_at_xi_zero_where_the_start_does_not_matter(net):
    x, y = pair(20)
    options = {**ATTACK, "start": "zero"}
    f = hookflat.average_flatness(net, (x, y), xi=0, samples=2, reference_restarts=1, **options)
    assert f.flatness == 0
    assert f.standard_error == 0


def test_average_flatness_of_a_quadratic_expectation_by_hand():
    """f = [w x, 0], one pixel, no attack: E CE over w +- xi |w| (the sphere in one dimension) in closed form."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[1].weight.data = torch.tensor([[2.0], [0.0]])
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    f = hookflat.average_flatness(net, (x, y), xi=0.5, samples=4000, eps=0, steps=1, reference_restarts=1)

    def ce(nu):
        return torch.nn.functional.softplus(-(2 + nu[:, 0] - nu[:, 1])).mean().item()

    direction = torch.randn(400_000, 2)
    expected = ce(direction / direction.norm(dim=1, keepdim=True)) - math.log1p(math.exp(-2))
    assert f.flatness == pytest.approx(expected, abs=4 * f.standard_error + 2e-3)
    assert f.standard_error < 0.01


def test_average_flatness_equals_the_definition_written_out(net):
    """Eq. 1 on a network with batch norm, without views: perturb a copy, attack it, average, subtract."""
    x, y = pair(30)
    options = {**ATTACK, "start": "zero"}
    ours = hookflat.average_flatness(net, (x, y), xi=0.3, samples=3, reference_restarts=1, seed=5, **options)

    def rloss(model):
        x_adv = hookflat.pgd(model, x, y, **options)
        return nn.functional.cross_entropy(model.eval()(x_adv), y).item()

    losses = []
    for sample in range(3):
        copied = copy.deepcopy(net)
        generator = seeds.generator(5, "average_flatness", sample)
        for w in layers(copied).values():
            direction = torch.randn(w.shape, generator=generator)
            w.data += 0.3 * w.norm() * direction / direction.norm().clamp_min(1e-12)
        losses.append(rloss(copied))
    assert ours.losses == pytest.approx(losses, rel=1e-3)
    assert ours.flatness == pytest.approx(sum(losses) / 3 - rloss(copy.deepcopy(net)), abs=1e-3)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaling_a_convolution_before_a_batch_norm_changes_nothing(net, factor):
    """Eq. 2 is relative per layer: the scaled network computes the same function and is equally flat."""
    x, y = pair(20)
    torch.manual_seed(0)
    scaled = small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="rebn", act="relu")
    scaled.load_state_dict(net.state_dict())
    options = {**ATTACK, "samples": 3, "reference_restarts": 2}
    for conv, norm in [(scaled.conv1, scaled.bn1), (scaled.layer2[0].conv1, scaled.layer2[0].bn1)]:
        conv.weight.data *= factor
        if conv.bias is not None:
            conv.bias.data *= factor
        norm.running_mean *= factor
        norm.running_var *= factor**2
        norm.eps *= factor**2  # the norm's own eps would change the function a little
    f, g = (hookflat.average_flatness(m, (x, y), **options) for m in (net, scaled))
    assert g.flatness == pytest.approx(f.flatness, rel=1e-4, abs=1e-4)
    assert g.reference == pytest.approx(f.reference, rel=1e-4)


def test_networks_are_left_as_found_also_when_interrupted(net):
    x, y = pair(10)
    net.train()
    net.conv1.weight.requires_grad_(False)
    found = Found.of(net)
    hookflat.robust_loss(net, (x, y), restarts=1, **ATTACK)
    hookflat.average_flatness(net, (x, y), samples=2, reference_restarts=1, **ATTACK)
    found.assert_unchanged(net)

    def stops():
        yield x, y
        raise KeyboardInterrupt

    for measure in (hookflat.robust_loss, lambda *a, **k: hookflat.average_flatness(*a, reference=0.0, **k)):
        with pytest.raises(KeyboardInterrupt):
            measure(net, stops(), **ATTACK)
        found.assert_unchanged(net)
    net.conv1.weight.requires_grad_(True)


def test_no_examples_is_an_error(net):
    with pytest.raises(ValueError, match="no examples"):
        hookflat.robust_loss(net, [], **ATTACK)


def test_the_global_generators_are_left_alone(net):
    before = torch.random.get_rng_state()
    hookflat.average_flatness(net, pair(5), samples=1, reference_restarts=1, **ATTACK)
    assert torch.equal(before, torch.random.get_rng_state())
