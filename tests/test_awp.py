from dataclasses import dataclass

import pytest
import torch

from hookflat import hookimpl
from hookflat.testing import Found, tiny_run

XI = 0.02


def awp_run(**tables):
    return tiny_run({"plugins": {"awp": {"xi": XI}}} | tables)


def perturbation(run, batch, x_adv):
    """nu_l = xi ||w_l|| g_l / ||g_l|| on weights of two or more dimensions, g in training mode, by hand."""
    weights = [p for p in run.network.parameters() if p.dim() > 1]
    state = {k: v.clone() for k, v in run.network.state_dict().items()}
    run.network.train()
    gradients = torch.autograd.grad(run.loss(batch, x_adv), weights)
    run.network.load_state_dict(state)
    return [(w, XI * w.detach().norm() * g / g.norm()) for w, g in zip(weights, gradients, strict=True)]


@pytest.mark.parametrize("loss", ["at", "trades"])
def test_the_gradient_is_taken_at_the_perturbed_weights_and_the_step_at_w(loss):
    with awp_run(loss={"name": loss}) as run:
        batch = next(run.batches())
        run.network.double()
        batch.x = batch.x.double()
        x_adv = (batch.x + 0.1).clamp(0, 1)
        nu = perturbation(run, batch, x_adv)
        assert len(nu) == 2
        seen = []
        run.network.register_forward_pre_hook(lambda module, args: seen.append([w.detach().clone() for w, _ in nu]))
        before = Found.of(run.network, buffers=False)
        run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
        before.assert_unchanged(run.network, buffers=False)
        for now, (w, n) in zip(seen[-1], nu, strict=True):
            assert torch.allclose(now - w, n, rtol=1e-10, atol=1e-14)
        gradients = [p.grad.clone() for p in run.network.parameters()]
        with torch.no_grad():
            for w, n in nu:
                w.add_(n)
        run.zero_grad()
        run.loss(batch, x_adv).backward()
        for p, g in zip(run.network.parameters(), gradients, strict=True):
            assert torch.allclose(p.grad, g, rtol=1e-10, atol=1e-12)


def test_running_statistics_follow_the_perturbed_pass_only():
    with awp_run() as run:
        batch = next(run.batches())
        norm = run.network.net[1]
        before = norm.num_batches_tracked.item()
        run.hook.gradients(run=run, batch=batch, x_adv=batch.x)
        assert norm.num_batches_tracked.item() == before + 1


def test_weights_are_restored_when_the_loss_raises_at_the_perturbed_weights():
    class Fails(Exception):  # noqa: N818
        pass

    with awp_run() as run:
        batch = next(run.batches())
        before, passes = Found.of(run.network, buffers=False), []

        def second_pass_fails(module, args):
            passes.append(1)
            if len(passes) == 2:
                raise Fails

        handle = run.network.register_forward_pre_hook(second_pass_fails)
        with pytest.raises(Fails):
            run.hook.gradients(run=run, batch=batch, x_adv=batch.x)
        handle.remove()
        before.assert_unchanged(run.network, buffers=False)


def test_warmup_waits():
    """Half of six steps: the network sees one forward pass a step, then two."""
    with tiny_run({"plugins": {"awp": {"xi": XI, "warmup": 0.5}}}) as run:
        batch, passes = next(run.batches()), []
        run.network.register_forward_pre_hook(lambda module, args: passes.append(run.step))
        for step in range(run.total_steps):
            run.step = step
            run.hook.gradients(run=run, batch=batch, x_adv=batch.x)
        assert [passes.count(step) for step in range(6)] == [1, 1, 1, 2, 2, 2]


def test_perturbations_nest_in_recipe_order():
    order = []

    def named(name):
        @dataclass(eq=False)
        class Bracket:
            @hookimpl(wrapper=True)
            def gradients(self):
                order.append(f"{name} in")
                try:
                    return (yield)
                finally:
                    order.append(f"{name} out")

        Bracket.__name__ = name
        return Bracket

    with tiny_run({"plugins": {"outer": {}, "inner": {}}}, [named("Outer"), named("Inner")]) as run:
        batch = next(run.batches())
        run.hook.gradients(run=run, batch=batch, x_adv=batch.x)
    assert order == ["Outer in", "Inner in", "Inner out", "Outer out"]
