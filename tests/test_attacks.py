import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import hookflat
from hookflat.functional.losses import cross_entropy
from hookflat.functional.threats import Attack, Threat
from hookflat.testing import Found

STARTS = ["uniform_norm", "uniform", "gaussian", "zero"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, 4, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0, 1),
    step_size=st.floats(1e-4, 2),
    steps=st.integers(0, 4),
    restarts=st.integers(1, 3),
    start=st.sampled_from(STARTS),
    keep=st.sampled_from(["best", "last"]),
    mode=st.sampled_from(["eval", "train"]),
    seed=st.integers(0, 99),
)
def test_stays_in_the_ball_and_the_box_whatever_the_options(eps, step_size, steps, restarts, start, keep, mode, seed):
    net, (x, y) = network(), images(5, seed)
    before = Found.of(net)
    options = {"eps": eps, "step_size": step_size, "steps": steps, "restarts": restarts, "start": start}
    x_adv = hookflat.pgd(net, x, y, keep=keep, mode=mode, seed=seed, **options)
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x_adv, hookflat.pgd(net, x, y, keep=keep, mode=mode, seed=seed, **options))
    assert not x_adv.requires_grad
    before.assert_unchanged(net)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(0, 5), restarts=st.integers(1, 3), seed=st.integers(0, 99))
def test_best_iterate_is_never_below_the_start_and_never_below_fewer_steps(steps, restarts, seed):
    net, (x, y) = network(seed).eval(), images(6, seed)

    def reached(steps, restarts):
        x_adv = hookflat.pgd(net, x, y, eps=0.2, step_size=0.3, steps=steps, restarts=restarts, seed=seed)
        return cross_entropy(net(x_adv), y)

    value = reached(steps, restarts)
    assert (value >= reached(0, 1) - 1e-6).all()
    assert (reached(steps + 1, restarts) >= value - 1e-6).all()
    assert (reached(steps, restarts + 1) >= value - 1e-6).all()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("attack", [hookflat.pgd, hookflat.apgd])
def test_no_weight_asks_for_a_gradient_in_an_attack(attack, mode):
    net, (x, y) = network(), images(5)
    asked = []

    def objective(model, x_adv):
        asked.append(any(p.requires_grad for m in (net, model) for p in m.parameters()))
        return cross_entropy(model(x_adv), y)

    attack(net, x, objective=objective, steps=2, eps=0.1, mode=mode)
    assert asked == [False] * 3
    assert all(p.requires_grad for p in net.parameters())


def test_reaches_the_closed_form_on_a_linear_model():
    """Two classes, logits W x: the worst delta in the ball is -eps sign(w_y - w_other)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    x = 0.3 + 0.4 * torch.rand(20, 2, 4, 4)
    y = torch.randint(0, 2, (20,))
    eps = 0.1
    difference = net[1].weight[y] - net[1].weight[1 - y]
    margin = (net(x).gather(1, y[:, None]) - net(x).gather(1, 1 - y[:, None])).squeeze(1)
    worst = torch.nn.functional.softplus(-(margin - eps * difference.abs().sum(1)))
    x_adv = hookflat.pgd(net, x, y, eps=eps, step_size=0.03, steps=10)
    assert torch.allclose(cross_entropy(net(x_adv), y), worst, atol=1e-5)


def test_last_iterate_equals_a_hand_written_loop():
    net, (x, y) = network().eval(), images(4)
    x_adv = x.clone()
    for _ in range(3):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(x_adv), y).sum(), x_adv)
        delta = (x_adv.detach() + 0.02 * gradient.sign() - x).clamp(-0.05, 0.05)
        x_adv = (x + delta).clamp(0, 1)
    ours = hookflat.pgd(net, x, y, eps=0.05, step_size=0.02, steps=3, start="zero", keep="last")
    assert torch.allclose(ours, x_adv, atol=1e-6)


def test_train_mode_attacks_the_batch_statistics():
    net, (x, y) = network().train(), images(6)
    net[1].running_mean += 5
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(module.training))
    hookflat.pgd(net, x, y, steps=1, mode="train")
    assert all(seen)
    seen.clear()
    hookflat.pgd(net, x, y, steps=1)
    assert not any(seen)


def test_the_papers_start_is_uniform_in_norm():
    """Direction Gaussian, L-infinity norm uniform in [0, eps]; mean entry about 0.11 eps on CIFAR's dimensions."""
    x = torch.zeros(2000, 3, 32, 32)
    delta = Threat(0.5).ball(x + 0.5).start("uniform_norm", torch.arange(2000), seed=0) - 0.5
    norms = delta.flatten(1).abs().amax(1)
    assert stats.kstest((norms / 0.5).numpy(), "uniform").pvalue > 1e-3
    assert delta.abs().mean() == pytest.approx(0.11 * 0.5, rel=0.03)


def test_the_other_starts_are_what_their_repositories_use():
    ball, keys = Threat(0.1).ball(torch.full((50, 3, 16, 16), 0.5)), torch.arange(50)
    box = ball.start("uniform", keys, seed=0) - 0.5
    assert stats.kstest((box / 0.1).flatten().numpy(), "uniform", (-1, 2)).pvalue > 1e-3
    gauss = ball.start("gaussian", keys, seed=0) - 0.5
    assert stats.kstest((gauss / 0.001).flatten().numpy(), "norm").pvalue > 1e-3
    assert not (ball.start("zero", keys, seed=0) - 0.5).any()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_leaves_the_model_as_found_when_interrupted(mode):
    net, (x, _) = network().train(mode == "eval"), images(4)
    net[0].weight.requires_grad_(False)
    before = Found.of(net)

    def objective(model, x_adv):
        model(x_adv)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hookflat.pgd(net, x, objective=objective, mode=mode)
    before.assert_unchanged(net)
    assert all(p.grad is None for p in net.parameters())


def test_needs_labels_or_an_objective():
    with pytest.raises(ValueError, match="labels y, or an objective"):
        hookflat.pgd(network(), images(2)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 2 * x - 1, r"lie in \[0, 1\], not -"),
        (lambda x: 255 * x, "put normalisation into the model"),
        (lambda x: (255 * x).to(torch.uint8), "floats"),
        (lambda x: x.double(), r"images are float64, the network torch\.float32: give it images\.float\(\)"),
    ],
)
def test_images_of_another_range_or_type_are_refused(change, message):
    x, y = images(4)
    with pytest.raises(ValueError, match=message):
        hookflat.pgd(network(), change(x), y)
    with pytest.raises(ValueError, match=message):
        hookflat.robust_loss(network(), (change(x), y))
    with pytest.raises(ValueError, match="restarts >= 1"):
        hookflat.pgd(network(), x, y, restarts=0)


def test_a_step_that_nobody_chose_follows_the_radius():
    """As 0.007 follows from 8/255; PGD with 20 steps of 0.007 moves a pixel by 0.14 at most."""
    for eps, step in ((8 / 255, 0.007), (16 / 255, 0.014), (0.3, 0.0669375)):
        for attack in (Attack(Threat(eps)), Attack().but(eps=eps), Attack().but(eps=1.0).but(eps=eps, steps=3)):
            assert attack.step_size == pytest.approx(step, rel=1e-12)
    assert Attack().step_size == 0.007  # to the bit: earlier numbers stay
    assert Attack(step_size=0.01).but(eps=0.3).step_size == 0.01
    assert Attack().but(step_size=0.02, eps=0.3).but(eps=0.1).step_size == 0.02
    with pytest.raises(ValueError, match="step_size: should be a finite number"):
        Attack(step_size=float("nan"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = hookflat.pgd(net, x, torch.tensor([0]), eps=0.4)
    assert (x_adv - x).abs().max() == pytest.approx(0.4, abs=1e-6)


def test_a_radius_of_grey_levels_is_told():
    with pytest.raises(ValueError, match=r"eps: should be at most 1 in the L-infinity norm, as images are in \[0, 1\]"):
        hookflat.pgd(nn.Flatten(), torch.zeros(1, 1, 2, 2), torch.tensor([0]), eps=8)
    assert Threat(8, "L2").eps == 8
