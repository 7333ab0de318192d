"""Friendly AT, ignoring incorrect examples, preventing label leaking and fast AT, each against its rule."""

import json

import pytest
import torch
from torch import nn

from hookflat.functional import attacks
from hookflat.functional.threats import Threat
from hookflat.testing import run_recipe, tiny_run


class Linear(nn.Module):
    """Logits (a . x, 0): class 0 where a . x > 0."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x):
        score = (x.flatten(1) * self.a).sum(1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def friendly_one_by_one(model, x, y, tau, eps, step_size, steps):
    """Algorithm 1 of Zhang et al. (2020) for a single example after another."""
    results = []
    for one, label in zip(x, y, strict=True):
        image, left = one[None].clone(), tau
        for _ in range(steps):
            image.requires_grad_()
            logits = model(image)
            if logits.argmax() != label:
                if left == 0:
                    break
                left -= 1
            loss = nn.functional.cross_entropy(logits, label[None])
            (gradient,) = torch.autograd.grad(loss, image)
            image = (image.detach() + step_size * gradient.sign()).clamp(one - eps, one + eps).clamp(0, 1)
        results.append(image.detach()[0])
    return torch.stack(results)


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_every_example_stops_by_the_friendly_rule(tau):
    torch.manual_seed(0)
    a = torch.randn(9)
    model = Linear(a - a.mean())  # images of one gray lie on the boundary
    x, y = 0.3 + 0.4 * torch.rand(40, 1, 3, 3), torch.randint(2, (40,))
    options = {"tau": tau, "eps": 0.2, "step_size": 0.01, "steps": 8}
    ours = attacks.pgd_tau(model, x, y, start="zero", **options)
    expected = friendly_one_by_one(model, x, y, **options)
    assert torch.allclose(ours, expected, atol=1e-6)
    moved = (ours - x).abs().amax((1, 2, 3))
    assert len(moved.unique().round(decimals=4).unique()) > 3  # examples stopped at different steps


def test_an_example_that_is_never_wrong_takes_every_step():
    model = Linear(torch.ones(4))
    x, y = torch.full((1, 1, 2, 2), 0.9), torch.tensor([0])
    moved = attacks.pgd_tau(model, x, y, tau=0, eps=0.1, step_size=0.01, steps=5, start="zero")
    assert torch.allclose(moved, x - 0.05)


def test_tau_grows_at_its_shares_of_the_training():
    table = {"attack": {"name": "pgd_tau", "eps": 0.3, "step_size": 0.1, "steps": 6, "grows": [0.5], "start": "zero"}}
    with tiny_run(table) as run:
        lengths, batch = [], next(run.batches())
        for step in (0, run.total_steps - 1):
            run.step = step
            batch.y = (run.attack_model(batch.x).argmax(1) + 1) % 3  # all wrong from the start
            objective = run.hook.attack_objective(run=run, batch=batch)
            x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
            lengths.append((x_adv - batch.x).abs().max().item())
    assert lengths[0] == 0
    assert lengths[1] == pytest.approx(0.1, abs=1e-6)


def test_incorrect_examples_stay_clean_and_the_others_are_attacked():
    with tiny_run({"plugins": {"ignore_incorrect": {}}}) as run:
        batch = next(run.batches())
        predicted = run.attack_model(batch.x).argmax(1)
        batch.y = torch.where(torch.arange(8) % 2 == 0, predicted, (predicted + 1) % 3)
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
        moved = (x_adv != batch.x).flatten(1).any(1)
    assert moved.tolist() == [True, False] * 4


def test_the_attack_uses_the_prediction_and_the_loss_the_label():
    with tiny_run({"plugins": {"prevent_label_leaking": {}}}) as run:
        batch = next(run.batches())
        run.network.eval()
        predicted = run.network(batch.x).argmax(1)
        batch.y = batch.target = (predicted + 1) % 3
        x_adv = (batch.x + 0.05).clamp(0, 1)
        logits = run.network(x_adv)
        objective = run.hook.attack_objective(run=run, batch=batch)
        expected = nn.functional.cross_entropy(logits, predicted, reduction="none")
        assert torch.allclose(objective(run.attack_model, x_adv), expected, atol=1e-5)
        loss = nn.functional.cross_entropy(run.network(x_adv), batch.y)
        assert run.loss(batch, x_adv).item() == pytest.approx(loss.item(), abs=1e-5)


def test_fast_at_is_one_signed_step_from_a_uniform_start():
    """Wong et al. (2020), Alg. 3: delta ~ U(-eps, eps), delta <- clip(delta + alpha sign(grad), -eps, eps)."""
    fast = {"eps": 0.1, "steps": 1, "start": "uniform", "alpha": 1.25, "keep": "last"}
    with tiny_run({"attack": fast}) as run:
        batch = next(run.batches())
        start = Threat(0.1).ball(batch.x).start("uniform", batch.row, seed_of_start(run)) - batch.x
        assert start.abs().max() > 0.09
        x_start = (batch.x + start).clamp(0, 1).requires_grad_()
        run.network.eval()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(run.network(x_start), batch.y), x_start)
        expected = (x_start.detach() + 0.125 * g.sign()).clamp(batch.x - 0.1, batch.x + 0.1).clamp(0, 1)
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
    assert torch.allclose(x_adv, expected, atol=1e-6)


def seed_of_start(run):
    from hookflat.functional import seeds

    return seeds.derive_seed(run.seed("attack"), "start", 0)


def test_no_attack_is_standard_training(tmp_path):
    nothing = {"steps": 0, "start": "zero", "keep": "last"}
    with tiny_run({"attack": nothing}) as run:
        batch = next(run.batches())
        x_adv = run.hook.craft(run=run, batch=batch, objective=run.hook.attack_objective(run=run, batch=batch))
        assert torch.equal(x_adv, batch.x)


def test_catastrophic_overfitting_is_told_when_robust_accuracy_falls(monkeypatch, capsys):
    class Subject:
        def robust_error(self, steps, restarts):
            return type("RobustError", (), {"error": errors.pop(0)})

    errors = [0.9, 0.5, 0.6, 0.95]
    with tiny_run({"plugins": {"catastrophic_overfitting": {}}}) as run:
        said = []
        monkeypatch.setattr(run.console, "say", said.append)
        monkeypatch.setattr(run.measurements, "subject", lambda *_: Subject())
        counts = []
        for run.epoch in range(1, 5):
            run.hook.epoch_end(run=run)
            counts.append(len(said))
        records = run.folder.records()
    assert counts == [0, 0, 0, 1]
    assert "from 50 % to 95 %" in said[0]
    assert [r["rerr_pgd"] for r in records] == [0.9, 0.5, 0.6, 0.95]


def test_the_warning_does_not_change_the_training(tmp_path):
    watched = run_recipe({"plugins": {"catastrophic_overfitting": {"examples": 8}}}, tmp_path / "watched")
    plain = run_recipe({}, tmp_path / "plain")
    a, b = (json.loads((r.folder / "eval.json").read_text())["models"]["last"]["test"] for r in (watched, plain))
    assert a == b
