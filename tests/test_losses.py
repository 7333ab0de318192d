"""TRADES and AT against formulas written out independently, in float64."""

import pytest
import torch
from torch import nn

from hookflat.functional.losses import kl_divergence
from hookflat.testing import tiny_run


def softmax(z):
    e = torch.exp(z - z.max(1, keepdim=True).values)
    return e / e.sum(1, keepdim=True)


def test_kl_divergence_is_the_sum_over_classes():
    torch.manual_seed(0)
    z, z_adv = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    p, q = softmax(z), softmax(z_adv)
    expected = (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(kl_divergence(z, z_adv), expected, atol=1e-12)


def in_float64(run):
    """The run's network, doubled, and a batch for it."""
    batch = next(run.batches())
    run.network.double()
    x, x_adv = batch.x.double(), (batch.x.double() + 0.1 * torch.rand_like(batch.x).double()).clamp(0, 1)
    batch.x = x
    return batch, x_adv


def gradients_of(run, loss):
    return torch.autograd.grad(loss, list(run.network.parameters()))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_loss_and_gradient(beta):
    with tiny_run({"loss": {"name": "trades", "beta": beta}}) as run:
        batch, x_adv = in_float64(run)
        ours = run.loss(batch, x_adv)
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        natural = -torch.log(p[torch.arange(len(p)), batch.y]).mean()
        expected = natural + beta * (p * torch.log(p / q)).sum() / len(p)
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, atol=1e-10)


def test_trades_attacks_the_divergence_from_the_clean_prediction():
    with tiny_run({"loss": {"name": "trades"}}) as run:
        batch = next(run.batches())
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = (batch.x + 0.05).clamp(0, 1)
        run.network.eval()
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        expected = (p * torch.log(p / q)).sum(1)
        assert torch.allclose(objective(run.attack_model, x_adv), expected, atol=1e-5)


@pytest.mark.parametrize(("fraction", "clean"), [(1.0, 0), (0.5, 4), (0.25, 6)])
def test_at_mixes_clean_and_adversarial_examples_by_their_share(fraction, clean):
    with tiny_run({"loss": {"name": "at", "fraction": fraction}, "model": {"norm": "group"}}) as run:
        batch, x_adv = in_float64(run)
        parts = [run.network(batch.x[:clean]), run.network(x_adv[clean:])]
        wrong = [
            -torch.log_softmax(z, 1).gather(1, y[:, None])
            for z, y in zip(parts, batch.y.split([clean, 8 - clean]), strict=True)
        ]
        means = [w.mean() if len(w) else 0.0 for w in wrong]
        expected = fraction * means[1] + (1 - fraction) * means[0]
        assert run.loss(batch, x_adv).item() == pytest.approx(float(torch.as_tensor(expected).detach()), abs=1e-10)


def test_losses_use_the_target_and_attacks_the_label():
    with tiny_run() as run:
        batch = next(run.batches())
        batch.target = (batch.y + 1) % 3
        expected = nn.functional.cross_entropy(run.model(batch.x), batch.target)
        assert run.loss(batch, batch.x).item() == pytest.approx(expected.item(), abs=1e-6)
        objective = run.hook.attack_objective(run=run, batch=batch)
        run.network.eval()
        attacked = nn.functional.cross_entropy(run.network(batch.x), batch.y)
        assert objective(run.attack_model, batch.x).mean().item() == pytest.approx(attacked.item(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_mart_loss_and_gradient(beta):
    """Wang et al. (2020), Eq. 6 and 11, as the official repository computes them."""
    with tiny_run({"loss": {"name": "mart", "beta": beta}}) as run:
        batch, x_adv = in_float64(run)
        ours = run.loss(batch, x_adv)
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        rows = torch.arange(len(p))
        order = q.argsort(dim=1)
        runner_up = torch.where(order[:, -1] == batch.y, order[:, -2], order[:, -1])
        boosted = -torch.log(q[rows, batch.y]) - torch.log(1.0001 - q[rows, runner_up] + 1e-12)
        weighted = (p * torch.log(p / q)).sum(1) * (1.0000001 - p[rows, batch.y])
        expected = boosted.mean() + beta * weighted.mean()
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, atol=1e-10)
