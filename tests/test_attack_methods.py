"""APGD, momentum and N-FGSM against AutoAttack's code and against loops by hand."""

import pytest
import torch
from pyautoattack import autopgd_base
from torch import nn

import hookflat
from hookflat import Threat, derive_seed
from hookflat.functional.losses import cross_entropy
from hookflat.testing import Found, tiny_run
from hookflat.training import loop

EPS = {"Linf": 0.08, "L2": 0.8, "L1": 4.0}


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(6 * 36, 4)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)  # steep enough for steps to oscillate
    return net


def images(n=12, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(1)
    x = low + (high - low) * torch.rand(n, 2, 6, 6, generator=generator)
    return x, torch.randint(0, 4, (n,), generator=generator)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_walks_as_autoattack_s_from_the_same_start(norm, steps, float64):
    """In L2 inside the cube, where its projection and ours, which is exact, agree."""
    net, (x, y) = network(), images(low=0.4, high=0.6) if norm == "L2" else images()
    eps = 0.3 if norm == "L2" else EPS[norm]
    start = Threat(eps, norm).ball(x).start("uniform", torch.arange(len(x)), derive_seed(0, "start", 0))
    theirs = autopgd_base.APGDAttack(net, n_iter=steps, norm=norm, eps=eps, device="cpu")
    theirs.init_hyperparam(x)
    expected = theirs.attack_single_run(x, y, start)[0]
    ours = hookflat.apgd(net, x, y, eps=eps, norm=norm, steps=steps)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12 if norm == "Linf" else 1e-6)  # it adds 1e-12 to every norm
    assert (ours - start).abs().amax() > 0.1 * eps


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_apgd_in_l1_walks_as_autoattack_s_from_the_same_start(steps, monkeypatch):
    """Which computes projections in float32, and changes its algorithm where a start is given, not drawn."""
    net, (x, y) = network(), images()
    start = Threat(EPS["L1"], "L1").ball(x).start("uniform", torch.arange(len(x)), derive_seed(0, "start", 0))
    theirs = autopgd_base.APGDAttack(net, n_iter=steps, norm="L1", eps=EPS["L1"], device="cpu")
    theirs.init_hyperparam(x)
    with monkeypatch.context() as drawn:
        drawn.setattr(torch, "randn", lambda *_: start - x)
        expected = theirs.attack_single_run(x, y)[0]
    ours = hookflat.apgd(net, x, y, eps=EPS["L1"], norm="L1", steps=steps)
    assert torch.allclose(ours, expected, atol=2e-6)
    assert (ours - start).abs().amax() > 0.01


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_apgd_finds_no_less_than_pgd_of_as_many_passes_and_stays_in_the_ball(norm):
    net, (x, y) = network(), images(30)
    before, threat = Found.of(net), Threat(EPS[norm], norm)
    options = {"eps": EPS[norm], "norm": norm, "start": "uniform"}
    x_adv = hookflat.apgd(net, x, y, steps=20, **options)
    assert threat.ball(x).norm(x_adv - x).max() <= EPS[norm] * (1 + 1e-5)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    plain = hookflat.pgd(net, x, y, steps=20, step_size=EPS[norm] / 4, **options)
    assert cross_entropy(net(x_adv), y).mean() >= cross_entropy(net(plain), y).mean()
    assert torch.equal(x_adv, hookflat.apgd(net, x, y, steps=20, **options))
    before.assert_unchanged(net)


def test_apgd_says_what_it_needs():
    with pytest.raises(ValueError, match="labels y, or an objective"):
        hookflat.apgd(network(), images()[0])
    with pytest.raises(ValueError, match="restarts >= 1"):
        hookflat.apgd(network(), *images(), restarts=0)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_momentum_is_algorithm_1_of_its_paper(decay):
    net, (x, y) = network().double(), images()
    x = x.double()
    x_adv, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(5):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(x_adv), y).sum(), x_adv)
        length = gradient.abs().sum((1, 2, 3), keepdim=True)
        velocity = decay * velocity + gradient / length
        x_adv = (x_adv.detach() + 0.03 * velocity.sign()).clamp(x - 0.08, x + 0.08).clamp(0, 1)
    options = {"eps": 0.08, "step_size": 0.03, "steps": 5, "start": "zero", "keep": "last"}
    ours = hookflat.pgd(net, x, y, momentum=decay, **options)
    assert torch.allclose(ours, x_adv, rtol=0, atol=1e-12)
    assert not torch.allclose(ours, hookflat.pgd(net, x, y, **options), atol=1e-3)


@pytest.mark.parametrize(("noise", "alpha"), [(2.0, 1.0), (1.0, 0.5)])
def test_n_fgsm_adds_the_step_to_the_noise_and_clips_to_the_cube_alone(noise, alpha):
    attack = {"name": "n_fgsm", "eps": 0.1, "noise": noise, "alpha": alpha}
    with tiny_run({"attack": attack}) as run:
        batch = next(run.batches())
        run.network.double()
        batch.x = batch.x.double()
        eta = Threat(0.1 * noise).ball(batch.x).start("uniform", batch.row, run.seed("attack")) - batch.x
        assert 0.09 * noise < eta.abs().max() <= 0.1 * noise + 1e-12
        x_noisy = (batch.x + eta).requires_grad_()
        run.network.eval()
        (gradient,) = torch.autograd.grad(cross_entropy(run.network(x_noisy), batch.y).sum(), x_noisy)
        expected = (x_noisy.detach() + 0.1 * alpha * gradient.sign()).clamp(0, 1)
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    assert (x_adv - batch.x).abs().max() > 0.1 * max(noise, alpha)


def test_n_fgsm_in_l2_steps_along_the_gradient():
    attack = {"name": "n_fgsm", "norm": "L2", "eps": 0.4, "noise": 2.0, "alpha": 0.5}
    with tiny_run({"attack": attack, "eval": {"eps": 0.4}}) as run:
        batch = next(run.batches())
        noisy = Threat(0.8, "L2").ball(batch.x).start("uniform", batch.row, run.seed("attack")).requires_grad_()
        assert (noisy - batch.x).flatten(1).norm(dim=1).max() <= 0.8 + 1e-6
        objective = run.hook.attack_objective(run=run, batch=batch)
        (gradient,) = torch.autograd.grad(objective(run.attack_model, noisy).sum(), noisy)
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
    unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(x_adv, (noisy.detach() + 0.2 * unit).clamp(0, 1), atol=1e-6)


def test_n_fgsm_steps_in_l1_as_sparsely_as_the_ball_of_eps_asks():
    with tiny_run({"attack": {"name": "n_fgsm", "norm": "L1", "eps": 1.0, "noise": 4.0}, "eval": {"eps": 1.0}}) as run:
        batch = next(run.batches())
        noisy = Threat(4.0, "L1").ball(batch.x).start("uniform", batch.row, run.seed("attack")).requires_grad_()
        objective = run.hook.attack_objective(run=run, batch=batch)
        (gradient,) = torch.autograd.grad(objective(run.attack_model, noisy).sum(), noisy)
        step = Threat(1.0, "L1").ball(batch.x).ascent(gradient, noisy.detach())
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
    assert torch.allclose(x_adv, (noisy.detach() + step).clamp(0, 1), atol=1e-6)
    assert (step != Threat(4.0, "L1").ball(batch.x).ascent(gradient, noisy.detach())).any()


@pytest.mark.parametrize("name", ["apgd", "mi_fgsm", "n_fgsm"])
def test_the_attacks_raise_the_loss(name):
    with tiny_run({"attack": {"name": name, "eps": 0.1, "step_size": 0.02, "steps": 5}}) as run:
        batch = next(run.batches())
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
        assert objective(run.attack_model, x_adv).mean() > objective(run.attack_model, batch.x).mean() + 1e-4


@pytest.mark.parametrize("replays", [1, 3])
def test_free_at_moves_images_and_weights_by_one_backward_pass(replays):
    """Against a loop by hand: plain SGD, one network, delta carried from batch to batch."""
    attack = {"name": "free", "eps": 0.1, "alpha": 0.6, "replays": replays}
    table = {"attack": attack, "optimizer": {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}}
    table["schedule"] = {"name": "constant"}
    with tiny_run(table) as run, tiny_run(table) as other:
        batches, delta = list(other.batches()), torch.zeros(8, 1, 6, 6).double()
        run.network.double(), (net := other.network.train()).double()
        for step in range(3):
            batch = batches[step // replays * replays]
            clean = batch.x.double()
            x = (clean + delta).clamp(0, 1)  # delta may be another image's
            delta = x - clean
            x.requires_grad_()
            loss = nn.functional.cross_entropy(net(x), batch.y)
            gradient, *by_weights = torch.autograd.grad(loss, [x, *net.parameters()])
            delta = (delta + 0.06 * gradient.sign()).clamp(-0.1, 0.1)
            delta = (clean + delta).clamp(0, 1) - clean
            with torch.no_grad():
                for p, g in zip(net.parameters(), by_weights, strict=True):
                    p -= 0.1 * g
        for own in run.batches():
            own.x = own.x.double()
            loop.step(run, own)
        for ours, theirs in zip(run.network.parameters(), net.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
        assert torch.allclose(run.recipe.slots["attack"]._delta, delta, rtol=0, atol=1e-12)
        assert delta.abs().max() == pytest.approx(0.1, abs=1e-12) or replays == 1


@pytest.mark.parametrize("perturbation", [{"awp": {"xi": 0.5}}, {"sam": {"rho": 0.5}}])
def test_free_at_moves_images_by_the_pass_at_the_perturbed_weights_alone(perturbation):
    attack = {"name": "free", "eps": 0.1, "alpha": 0.6, "replays": 2}
    with tiny_run({"attack": attack, "plugins": perturbation, "model": {"norm": "group"}}) as run:
        batch = next(run.batches())
        run.hook.transform_batch(run=run, batch=batch)
        gradients = []
        backward = run.backward
        x_adv = batch.x.clone()

        def watched(loss):
            before = torch.zeros_like(x_adv) if x_adv.grad is None else x_adv.grad.clone()
            backward(loss)
            gradients.append(None if x_adv.grad is None else x_adv.grad - before)

        run.backward = watched
        run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
        assert gradients[0] is None
        delta = (batch.x + 0.06 * gradients[1].sign()).clamp(0, 1) - batch.x
        assert torch.allclose(run.plugins["free"]._delta, delta, atol=1e-6)


PASSED = []


class Counted(nn.Module):
    """Notes how many images each gradient is asked for; what it computes depends on data, so it cannot be traced."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.sum() >= 0 and x.requires_grad:
            PASSED.append(len(x))
        return self.net(x)


def test_another_divergence_from_the_clean_prediction_is_that_of_the_probabilities(float64):
    """SCORE's (Pang et al. 2022): the squared distance of two distributions over classes."""

    def squared(logits, logits_adv):
        return (logits.softmax(dim=1) - logits_adv.softmax(dim=1)).square().sum(dim=1)

    (x, _), net = images(), network().eval()
    objective, at = hookflat.divergence_from_clean(x, squared), (x + 0.01).requires_grad_()
    p, q = net(x).softmax(dim=1), net(at).softmax(dim=1)
    assert torch.allclose(objective(net, at), ((p - q) ** 2).sum(dim=1))
    with pytest.raises(hookflat.UserError, match="has no gradient at the image itself"):
        hookflat.pgd(net, x, objective=objective, start="zero", steps=2, eps=0.1, step_size=0.1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    "objective",
    [
        lambda x: None,
        hookflat.divergence_from_clean,
        lambda x: lambda net, x_adv: (-net(x_adv).amax(dim=1), net(1 - x))[0],  # asks for another point last
    ],
)
def test_pgd_that_stops_in_circles_ends_at_the_same_points(norm, objective, float64):
    (x, y), net = images(), Counted(network()).eval()
    options = {"eps": EPS[norm], "norm": norm, "step_size": EPS[norm] / 3, "steps": 100, "restarts": 2}
    expected = hookflat.pgd(net, x, y, objective=objective(x), **options)
    PASSED.clear()
    x_adv = hookflat.pgd(net, x, y, objective=objective(x), cycle_detection=True, **options)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    if norm == "Linf":  # steps of the gradient's length come back to no point
        assert sum(PASSED) < 0.7 * 2 * 100 * len(x)


def test_a_circle_is_left_where_it_closes_on_the_point_after_the_last_power_of_two_of_steps():
    x, top = torch.full((3, 1, 1, 1), 0.5), torch.tensor([0.5625, 1.0, 0.5625]).view(3, 1)
    PASSED.clear()
    x_adv = hookflat.pgd(
        Counted(nn.Flatten()).eval(),
        x,
        objective=lambda net, x_adv: -(net(x_adv) - top).abs().sum(dim=1),
        attack=hookflat.Attack(Threat(0.25), step_size=0.125, steps=16, start="zero"),
        cycle_detection=True,
    )
    # 0.5, 0.625, 0.5, 0.625, 0.5; the second: 0.5, 0.625, 0.75, 0.75
    assert PASSED == [3, 3, 3, 2]
    assert x_adv.flatten().tolist() == [0.5, 0.75, 0.5]


def test_circles_end_also_where_a_second_head_hears_of_every_row():
    attack = {"eps": 0.1, "step_size": 0.05, "steps": 40}
    crafted = []
    for cycle_detection in (False, True):
        tables = {"attack": attack | {"cycle_detection": cycle_detection}, "plugins": {"self_supervision": {}}}
        with tiny_run(tables) as run:
            batch = next(run.batches())
            loop.step(run, batch)
            crafted.append(batch.beside.x)
    assert torch.allclose(*crafted, atol=1e-6)


@pytest.mark.parametrize("option", [{"keep": "last"}, {"momentum": 0.5}, {"mode": "train"}])
def test_what_does_not_repeat_cannot_be_searched_for_circles(option):
    with pytest.raises(ValueError, match='cycle_detection needs keep="best", no momentum and mode="eval"'):
        hookflat.pgd(network(), *images(), cycle_detection=True, **option)
