"""Weight perturbations against formulas written out by hand, in float64."""

import pytest
import torch
from torch import nn

import hookflat
from hookflat.functional import seeds
from hookflat.functional.brackets import in_mode
from hookflat.functional.layers import AuxiliaryHead
from hookflat.functional.neighborhood import ball, layers, sharpest
from hookflat.testing import Found, tiny_run
from hookflat.training import loop


def started(run):
    """A batch and adversarial examples for it, in the second step of the run; they and the network in float64."""
    run.step = 1
    run.network.double()
    return in_float64(next(run.batches()))


def in_float64(batch):
    batch.x = batch.x.double()
    return batch, (batch.x + 0.1).clamp(0, 1)


def trained(run):
    return [p for p in run.network.parameters() if p.requires_grad]


def gradients_by_hand(run, batch, x_adv, nu=None, *, train=True):
    """Gradients of the mean cross-entropy at w + nu, with torch alone; weights and statistics put back."""
    state = {k: v.clone() for k, v in run.network.state_dict().items()}
    with torch.no_grad():
        for p, n in nu or ():
            p.add_(n)
    with in_mode(run.network, train):
        loss = nn.functional.cross_entropy(run.network(x_adv), batch.y)
        gradients = torch.autograd.grad(loss, trained(run))
    run.network.load_state_dict(state)
    return gradients


def hooked_gradients(run, batch, x_adv):
    before = Found.of(run.network, buffers=False)
    run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
    before.assert_unchanged(run.network, buffers=False)
    return [p.grad.clone() for p in trained(run)]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def weights_of(run):
    return list(layers(run.network, biases=False).values())


@pytest.mark.parametrize("population", [1, 3])
def test_random_weights_take_the_mean_of_clipped_gradients_on_the_sphere(population):
    options = {"xi": 0.3, "population": population, "clip": 0.02}
    with tiny_run({"plugins": {"random_weights": options}}) as run:
        batch, x_adv = started(run)
        weights, expected = weights_of(run), [torch.zeros_like(p) for p in trained(run)]
        generator = seeds.generator(0, "random_weights", run.step)
        for _ in range(population):
            nu = []
            for w, g in zip(weights, hookflat.normals_like(weights, generator), strict=True):
                nu.append((w, 0.3 * w.detach().norm() * g / g.norm()))
            there = gradients_by_hand(run, batch, x_adv, nu)
            expected = [e + g.clamp(-0.02, 0.02) / population for e, g in zip(expected, there, strict=True)]
        ours = hooked_gradients(run, batch, x_adv)
        assert_close(ours, expected)
        assert max(g.abs().max() for g in ours) == pytest.approx(0.02, rel=1e-12)


def test_the_pass_at_w_alone_moves_the_running_statistics():
    with tiny_run({"plugins": {"random_weights": {"population": 3}}}) as run, tiny_run() as plain:
        batch, x_adv = started(run)
        plain.network.double()
        run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
        plain.hook.gradients(run=plain, batch=batch, x_adv=x_adv)
        for ours, theirs in zip(run.network.buffers(), plain.network.buffers(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("threshold", "perturbs"), [(1e-3, False), (1e3, True)])
def test_the_threshold_curriculum_looks_at_the_loss_of_the_last_step(threshold, perturbs):
    options = {"curriculum": "threshold", "threshold": threshold}
    with tiny_run({"plugins": {"random_weights": options}}) as run:
        batch, x_adv = started(run)
        plain = gradients_by_hand(run, batch, x_adv)
        first = hooked_gradients(run, batch, x_adv)
        assert_close(first, plain)  # nothing is known yet
        run.zero_grad()
        second = hooked_gradients(run, batch, x_adv)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(second, plain, strict=True)) != perturbs


def test_the_simple_curriculum_starts_with_the_second_step():
    with tiny_run({"plugins": {"random_weights": {}}}) as run:
        batch, x_adv = started(run)
        run.step = 0
        assert_close(hooked_gradients(run, batch, x_adv), gradients_by_hand(run, batch, x_adv))


def test_one_attack_step_of_full_length_goes_to_the_boundary_along_the_gradient_in_evaluation_mode():
    options = {"xi": 0.02, "steps": 1, "step_size": 1.0, "start": "zero"}
    with tiny_run({"plugins": {"weight_attack": options}}) as run:
        batch, x_adv = started(run)
        weights = weights_of(run)
        gradients = dict(zip(trained(run), gradients_by_hand(run, batch, x_adv, train=False), strict=True))
        nu = run.plugins["weight_attack"].perturbation(run, batch, x_adv, weights)
        expected = [0.02 * w.norm() * gradients[w] / gradients[w].norm() for w in weights]
        assert_close(nu, expected)


def test_several_attack_steps_follow_the_rule_and_stay_in_the_ball():
    """The second step's gradient is taken at w + nu_1, and the last step counts."""
    options = {"xi": 0.015, "steps": 2, "step_size": 0.01, "start": "zero"}
    with tiny_run({"plugins": {"weight_attack": options}}) as run:
        batch, x_adv = started(run)
        weights = weights_of(run)
        nu = [torch.zeros_like(w) for w in weights]
        for _ in range(2):
            at = gradients_by_hand(run, batch, x_adv, list(zip(weights, nu, strict=True)), train=False)
            gradients = dict(zip(trained(run), at, strict=True))
            nu = [n + 0.01 * w.norm() * gradients[w] / gradients[w].norm() for n, w in zip(nu, weights, strict=True)]
            nu = [n * min(1, (0.015 * w.norm() / n.norm()).item()) for n, w in zip(nu, weights, strict=True)]
        ours = run.plugins["weight_attack"].perturbation(run, batch, x_adv, weights)
        assert_close(ours, nu)
        assert all(n.norm() <= 0.015 * w.norm() * (1 + 1e-12) for n, w in zip(ours, weights, strict=True))


def test_the_attack_raises_the_loss_more_than_a_random_point_of_the_same_ball():
    with tiny_run({"plugins": {"weight_attack": {"xi": 0.1, "steps": 5, "step_size": 0.05}}}) as run:
        batch, x_adv = started(run)
        weights = weights_of(run)

        def loss_at(nu):
            with torch.no_grad(), in_mode(run.network, train=False):
                for w, n in zip(weights, nu, strict=True):
                    w.add_(n)
                value = nn.functional.cross_entropy(run.network(x_adv), batch.y).item()
                for w, n in zip(weights, nu, strict=True):
                    w.sub_(n)
            return value

        attacked = loss_at(run.plugins["weight_attack"].perturbation(run, batch, x_adv, weights))
        assert attacked > max(loss_at(ball(weights, 0.1, seeds.generator(i))) for i in range(5))


def test_the_ball_has_a_uniform_norm():
    from scipy import stats

    weights = [torch.ones(4, 5)] * 400
    relative = torch.stack([n.norm() for n in ball(weights, 0.5, seeds.generator(0))]) / (0.5 * weights[0].norm())
    assert stats.kstest(relative.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_climbs_to_the_radius_by_the_papers_formula(adaptive):
    with tiny_run({"plugins": {"sam": {"rho": 0.3, "adaptive": adaptive, "eta": 0.01}}}) as run:
        batch, x_adv = started(run)
        weights, gradients = trained(run), gradients_by_hand(run, batch, x_adv)
        scales = [w.abs() + 0.01 if adaptive and w.dim() > 1 else torch.ones_like(w) for w in weights]
        length = torch.sqrt(sum((t * g).square().sum() for t, g in zip(scales, gradients, strict=True)))
        nu = [0.3 * t * t * g / length for t, g in zip(scales, gradients, strict=True)]
        stretched = torch.sqrt(sum((n / t).square().sum() for n, t in zip(nu, scales, strict=True)))
        assert stretched.item() == pytest.approx(0.3, rel=1e-12)  # ||T^-1 nu|| = rho
        expected = gradients_by_hand(run, batch, x_adv, list(zip(weights, nu, strict=True)))
        assert_close(hooked_gradients(run, batch, x_adv), expected)


def test_asam_is_invariant_to_the_scale_of_two_layers_that_cancel():
    """w_1 -> 2 w_1, w_2 -> w_2 / 2 is the same function of a ReLU network, and ASAM's loss there the same (eta = 0)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x, y = torch.randn(16, 4).double(), torch.randint(3, (16,))
    losses = []
    for factor in (1.0, 2.0):
        with torch.no_grad():
            net[0].weight.mul_(factor)
            net[2].weight.div_(factor)
        weights = list(net.parameters())
        gradients = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), weights)
        nu = sharpest(gradients, 0.5, [w.abs() for w in weights])
        with torch.no_grad():
            moved = [w + n for w, n in zip(weights, nu, strict=True)]
            losses.append(nn.functional.cross_entropy((x @ moved[0].T).relu() @ moved[1].T, y).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_amp_follows_the_official_rule():
    """nu_l <- P(nu_l + step g_l) in a ball of radius eps for each tensor."""
    with tiny_run({"plugins": {"amp": {"eps": 0.05, "step_size": 0.2, "steps": 2}}}) as run:
        batch, x_adv = started(run)
        weights = trained(run)
        nu = [torch.zeros_like(w) for w in weights]
        for _ in range(2):
            gradients = gradients_by_hand(run, batch, x_adv, list(zip(weights, nu, strict=True)))
            nu = [n + 0.2 * g for n, g in zip(nu, gradients, strict=True)]
            nu = [n if n.norm() <= 0.05 else n * 0.05 / n.norm() for n in nu]
        assert any(n.norm() > 0.049 for n in nu)
        assert any(n.norm() < 0.049 for n in nu)
        expected = gradients_by_hand(run, batch, x_adv, list(zip(weights, nu, strict=True)))
        assert_close(hooked_gradients(run, batch, x_adv), expected)


def test_an_auxiliary_head_is_no_part_of_the_neighbourhood():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), AuxiliaryHead(nn.Linear(5, 3), nn.Linear(5, 4)))
    assert set(layers(net)) == {"0.weight", "0.bias", "2.classifier.weight", "2.classifier.bias"}


def rwp_by_hand(run, batch, x_adv, xi, threshold, steps):
    """Yu et al. (2022) as the official code does it: proxies that SGD moves, one scale for all weights."""
    weights = weights_of(run)
    total = [torch.zeros_like(w) for w in weights]
    nu = [torch.zeros_like(w) for w in weights]
    state = {k: v.clone() for k, v in run.network.state_dict().items()}
    for _ in range(steps):
        with torch.no_grad():
            for w, n in zip(weights, nu, strict=True):
                w.add_(n)
        start = [w.detach().clone() for w in weights]
        loss = nn.functional.cross_entropy(run.network(x_adv), batch.y, reduction="none")
        optimizer = torch.optim.SGD(weights, lr=0.01)
        optimizer.zero_grad()
        (-(loss * (loss < threshold)).mean()).backward()
        optimizer.step()
        total = [d + (w.detach() - s) for d, w, s in zip(total, weights, start, strict=True)]
        optimizer.zero_grad()
        run.network.load_state_dict(state)
        size = torch.cat([w.detach().flatten() for w in weights]).norm()
        scale = xi * size / (torch.cat([d.flatten() for d in total]).norm() + 1e-20)
        nu = [scale * d for d in total]
    run.network.zero_grad()
    return weights, nu


@pytest.mark.parametrize("steps", [1, 3])
def test_rwp_ascends_the_examples_of_small_loss(steps):
    with tiny_run({"plugins": {"rwp": {"xi": 1.0, "steps": steps}}}) as run:
        batch, x_adv = started(run)
        losses = nn.functional.cross_entropy(run.network(x_adv), batch.y, reduction="none")
        threshold = losses.median().item() + 1e-4
        run.network.load_state_dict({k: v.clone() for k, v in run.network.state_dict().items()})
        run.plugins["rwp"].threshold = threshold
        weights, nu = rwp_by_hand(run, batch, x_adv, 1.0, threshold, steps)
        everything = gradients_by_hand(run, batch, x_adv)
        expected = gradients_by_hand(run, batch, x_adv, list(zip(weights, nu, strict=True)))
        ours = hooked_gradients(run, batch, x_adv)
        assert_close(ours, expected)
        assert any(not torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(ours, everything, strict=True))


def test_rwp_without_examples_of_small_loss_is_no_perturbation():
    with tiny_run({"plugins": {"rwp": {"xi": 0.5, "steps": 2, "threshold": 0.0}}}) as run:
        batch, x_adv = started(run)
        expected = gradients_by_hand(run, batch, x_adv)
        assert_close(hooked_gradients(run, batch, x_adv), expected)


@pytest.mark.parametrize("other", ["grad_align", "self_supervision"])
def test_no_other_term_pulls_the_perturbation_of_rwp(other):
    table = {other: {}, "rwp": {"xi": 0.5, "steps": 2, "threshold": 0.0}}
    with tiny_run({"plugins": table}) as run, tiny_run({"plugins": {other: {}}}) as alone:
        moved = [next(iter(r.batches())) for r in (run, alone)]
        for r, batch in zip((run, alone), moved, strict=True):
            loop.step(r, batch)
        for ours, theirs in zip(run.network.parameters(), alone.network.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gsam_takes_off_what_is_orthogonal_to_the_perturbed_gradient(alpha):
    with tiny_run({"plugins": {"gsam": {"rho": 0.3, "alpha": alpha}}}) as run:
        batch, x_adv = started(run)
        flat = torch.cat([g.flatten() for g in gradients_by_hand(run, batch, x_adv)])
        nu = 0.3 * flat / flat.norm()
        parts = [n.view_as(p) for n, p in zip(nu.split([p.numel() for p in trained(run)]), trained(run), strict=True)]
        perturbed = gradients_by_hand(run, batch, x_adv, list(zip(trained(run), parts, strict=True)))
        perturbed = torch.cat([g.flatten() for g in perturbed])
        cosine = (flat @ perturbed) / (flat.norm() * perturbed.norm())
        vertical = flat - cosine * flat.norm() * perturbed / perturbed.norm()
        ours = torch.cat([g.flatten() for g in hooked_gradients(run, batch, x_adv)])
        assert_close([ours], [perturbed - alpha * vertical])
        assert abs(vertical @ perturbed) < 1e-14
        assert vertical.norm() > 1e-3


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [({"name": "multistep", "milestones": [0.5]}, [1, 1, 1, 0.1, 0.1, 0.1]), ({"name": "cyclic"}, [0, 1, 2, 3, 2, 1])],
)
def test_the_radius_of_gsam_follows_the_learning_rate(schedule, shares):
    """Zhuang et al. (2022): rho_min + (rho - rho_min) lr / lr_max."""
    with tiny_run({"plugins": {"gsam": {"rho": 0.3, "rho_min": 0.1}}, "schedule": schedule}) as run:
        radii = []
        for _ in range(6):
            radii.append(run.plugins["gsam"]._radius(run))
            run.optimizer.step()
            run.schedule.step()
        assert run.total_steps == 6
    assert radii == pytest.approx([0.1 + 0.2 * share / max(shares) for share in shares])


def test_friendly_sam_perturbs_along_what_batches_do_not_share():
    with tiny_run({"plugins": {"friendly_sam": {"rho": 0.3, "sigma": 0.7, "decay": 0.6}}}) as run:
        mean = None
        run.network.double()
        for batch, x_adv in map(in_float64, run.batches()):
            g = torch.cat([g.flatten() for g in gradients_by_hand(run, batch, x_adv)])
            direction = g if mean is None else g - 0.7 * mean
            mean = g if mean is None else 0.6 * mean + 0.4 * g
            nu = (0.3 * direction / direction.norm()).split([p.numel() for p in trained(run)])
            moves = [(p, n.view_as(p)) for p, n in zip(trained(run), nu, strict=True)]
            expected = gradients_by_hand(run, batch, x_adv, moves)
            assert_close(hooked_gradients(run, batch, x_adv), expected)
            run.zero_grad()
