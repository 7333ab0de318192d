import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hookflat
from hookflat.functional import robustness, seeds
from hookflat.functional.brackets import frozen
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples
from hookflat.functional.losses import cross_entropy
from hookflat.functional.networks import small_image_resnet
from hookflat.functional.robustness import robust_losses
from hookflat.functional.work import Work
from hookflat.testing import Found

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


@pytest.mark.parametrize("batch", [25, 40])
def test_the_loss_of_three_restarts_is_the_largest_of_three_attacks(digits_net, digits_pair, batch):
    """From the start of each restart, and each is above the others somewhere; 25: a batch ends inside a restart."""
    x, y = digits_pair
    data = Images((x * 255).round().to(torch.uint8), y)
    measured = hookflat.robust_loss(digits_net, Examples(data, batch_size=batch), restarts=3, seed=4, **ATTACK)
    each = []
    for restart in range(3):
        x_adv = hookflat.pgd(digits_net, x, y, seed=seeds.derive_seed(4, "restart", restart), **ATTACK)
        each.append(cross_entropy(digits_net(x_adv), y).detach())
    assert torch.allclose(measured.per_example.loss, torch.stack(each).amax(dim=0), atol=1e-4)
    for restart in range(3):
        others = torch.stack(each[:restart] + each[restart + 1 :]).amax(dim=0)
        assert (each[restart] > others + 1e-2).any()


def test_losses_are_the_networks_own_at_the_points_found(digits_net, digits_pair, monkeypatch):
    """Whatever searched: here a view with logits three times as large."""
    x, y = digits_pair

    class Lying(nn.Module):
        def forward(self, x):
            return 3 * digits_net(x)

    lying, attack = Lying().eval(), hookflat.Attack(hookflat.Threat(0.1), 0.04, 3)
    monkeypatch.setattr(robustness, "attack_view", lambda model, precision="fp32": lying)
    with frozen(digits_net):
        losses = robust_losses(digits_net, digits_pair, attack, 0, Work())
        points = hookflat.pgd(lying, x, y, attack=attack, seed=seeds.derive_seed(0, "restart", 0))
        assert torch.allclose(losses, cross_entropy(digits_net(points), y), atol=1e-4)
        assert (losses - cross_entropy(lying(points), y)).abs().max() > 0.1


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_does_not_depend_on_the_batch_size_or_the_kind_of_loader(net, batch):
    x, y = pair()
    reference = hookflat.robust_loss(net, (x, y), restarts=2, **ATTACK)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)
    other = hookflat.robust_loss(net, loader, restarts=2, **ATTACK)
    assert torch.allclose(reference.per_example.loss, other.per_example.loss, atol=1e-4)
    examples = hookflat.robust_loss(net, Examples(images(), batch_size=batch), restarts=2, **ATTACK)
    assert examples.loss == pytest.approx(reference.loss, abs=1e-5)


def test_no_batch_is_a_small_rest():
    seen = []

    class Counting(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x.flatten(1))

    model = Counting(64, 10)
    for data, restarts, sizes in (
        (pair(512), 1, {170, 171}),
        (Examples(images(205), batch_size=100), 1, {67, 69}),
        (Examples(images(60), batch_size=100), 2, {60}),
        (Examples(images(60), batch_size=100), 7, {60, 84}),
    ):
        hookflat.robust_loss(model, data, restarts=restarts, **ATTACK)
        assert set(seen) - {1} == sizes
        seen.clear()


def test_networks_are_left_as_found_also_when_interrupted(net):
    x, y = pair(10)
    net.train()
    net.conv1.weight.requires_grad_(False)
    before = Found.of(net)
    hookflat.robust_loss(net, (x, y), restarts=1, **ATTACK)
    before.assert_unchanged(net)

    def stops():
        yield x, y
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hookflat.robust_loss(net, stops(), **ATTACK)
    before.assert_unchanged(net)
    net.conv1.weight.requires_grad_(True)


def test_loss_by_whether_the_clean_image_is_classified_correctly(digits_net, digits_pair):
    """The paper's Fig. 2: the two parts, weighted by their shares, are the whole."""
    r = hookflat.robust_loss(digits_net, digits_pair, restarts=2, **ATTACK)
    wrong = r.clean_error
    assert 0 < wrong < 0.5
    assert r.loss == pytest.approx((1 - wrong) * r.loss_correct + wrong * r.loss_incorrect)
    assert r.loss_correct < r.loss_incorrect


@pytest.mark.parametrize("batch", [7, 40])
def test_a_known_clean_pass_is_not_made_again_and_changes_nothing(digits_net, digits_pair, batch):
    data = Examples(Images((digits_pair[0] * 255).round().to(torch.uint8), digits_pair[1]), batch_size=batch)
    clean = hookflat.robust_loss(digits_net, data, restarts=0)
    for measure in (hookflat.robust_loss, hookflat.robust_error):
        alone = measure(digits_net, data, restarts=2, **ATTACK)
        seen = []
        handle = digits_net.register_forward_hook(lambda net, args, out, seen=seen: seen.append(len(args[0])))
        measure(digits_net, data, restarts=0)
        without = sum(seen)
        seen.clear()
        measure(digits_net, data, restarts=0, clean=clean)
        assert without - sum(seen) == 40
        handle.remove()
        shared = measure(digits_net, data, restarts=2, clean=clean, **ATTACK)
        assert (alone.error, alone.clean_error) == (shared.error, shared.clean_error)
        if measure is hookflat.robust_loss:
            for name, column in vars(alone.per_example).items():
                assert torch.equal(column, getattr(shared.per_example, name)), name


def test_what_is_given_wrongly_is_told(net):
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    attack = {"steps": 1, "restarts": 1}
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    for wrong, said in (
        (lambda: hookflat.robust_loss(one, (x, y * 0), **attack), r"not \(n, 1\): of a single logit"),
        (lambda: hookflat.robust_loss(net, (x + 1e-7 + (x == x.max()), y), **attack), "put normalisation"),
        (lambda: hookflat.robust_loss(net, (x / x.max() * (1 + 2e-7), y), **attack), "not .* to 1.00000024: clamp"),
        (lambda: hookflat.pgd(net, x, y, eps="8/255"), "eps: should be one number, not '8/255'"),
        (lambda: hookflat.average_flatness(net, (x, y), xi=[0.1, 0.5]), r"xi: should be one number"),
        (lambda: hookflat.pgd(net, x.numpy(), y), "a tensor .* not ndarray"),
        (lambda: hookflat.robust_loss(net, [(x, y, y)], **attack), "two tensors, not tuple of 3"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_no_examples_is_an_error(net):
    with pytest.raises(ValueError, match="no examples"):
        hookflat.robust_loss(net, [], **ATTACK)


def test_the_global_generators_are_left_alone(net):
    before = torch.random.get_rng_state()
    hookflat.robust_loss(net, pair(5), restarts=1, **ATTACK)
    assert torch.equal(before, torch.random.get_rng_state())


def test_logits_that_are_not_numbers_are_wrong():
    """argmax calls NaN the class 0, of which a network without numbers would get all images right."""

    class Halting(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            return self.last(x.flatten(1)) * torch.where(x.flatten(1).mean(dim=1, keepdim=True) > 0.5, torch.nan, 1.0)

    x, y = torch.tensor([0.7, 0.8, 0.2]).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous(), torch.zeros(3).long()
    net = Halting()
    net.last.weight.data.zero_()
    net.last.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0]))
    options = {"eps": 0.01, "seed": 0}
    r = hookflat.robust_loss(net, (x, y), steps=2, **options)
    assert math.isnan(r.loss)
    assert r.error == r.clean_error == 2 / 3
    assert hookflat.robust_error(net, (x, y), steps=2, **options).error == 2 / 3
    assert hookflat.autoattack(net, (x, y), version="custom", attacks=["apgd-ce"], **options).clean_error == 2 / 3
    assert hookflat.margins(net, (x, y), steps=2, **options).wrong.tolist() == [True, True, False]
    flat = hookflat.average_flatness(net, (x, y), xi=0.1, samples=2, steps=2, **options)
    assert math.isnan(flat.flatness)
    assert math.isnan(flat.standard_error)
