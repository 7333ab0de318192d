"""fp16 with its loss scale, accumulation, clipping, compile: each against arithmetic by hand."""

import types
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hookflat import TrainingFailed, hookimpl
from hookflat.functional.attack_view import AttackView
from hookflat.functional.data import Batch
from hookflat.functional.layers import Autocast
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import checkpoints, launch, loop
from hookflat.training.finite import first_layer

GROUP = {"norm": "group"}
PERTURBATIONS = {
    "none": {},
    "awp": {"awp": {}},
    "sam": {"sam": {}},
    "asam": {"sam": {"adaptive": True}},
    "amp": {"amp": {"eps": 0.1, "steps": 2}},
    "random_weights": {"random_weights": {"population": 2, "xi": 0.1}},
    "weight_attack": {"weight_attack": {"population": 1, "steps": 2}},
    "rwp": {"rwp": {"steps": 2}},
    "gsam": {"gsam": {}},
    "friendly_sam": {"friendly_sam": {}},
}


def trained(tables, plugins=(), steps=3):
    with tiny_run(tables, plugins) as run:
        for batch in [*run.batches()][:steps]:
            loop.step(run, batch)
        return [p.detach().clone() for p in run.network.parameters()], run


def apart(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


def test_every_weight_perturbation_is_in_these_tests():
    every = {source.name for source in Catalogue() if kind_of(source.load()) == "weight perturbation"}
    assert every == {name for plugins in PERTURBATIONS.values() for name in plugins}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_parts_of_a_batch_give_the_step_of_the_whole(name):
    """Without batch norm, four parts and a clipped gradient are the step of one part, at every perturbed weight too."""
    tables = {"model": GROUP, "plugins": PERTURBATIONS[name] | {"label_noise": {}}}
    whole, _ = trained(tables | {"run": {"max_grad_norm": 0.5}})
    parts, _ = trained(tables | {"run": {"max_grad_norm": 0.5, "accumulation": 4}})
    plain, _ = trained(tables)
    assert apart(whole, parts) < 1e-6
    assert apart(whole, plain) > 1e-4  # clipping did something


@pytest.mark.parametrize("tables", [{"optimizer": {"name": "entropy_sgd", "langevin_steps": 2}},
                                    {"loss": {"name": "uat", "targets": "ot"},
                                     "plugins": {"unlabeled": {"share": 0.4, "fraction": 0.4}}},
                                    {"plugins": {"self_supervision": {"hidden": 0}}},
                                    {"attack": {"name": "free", "norm": "L2", "eps": 0.5, "replays": 2}}],
                         ids=["entropy_sgd", "uat", "self_supervision", "free"])  # fmt: skip
def test_parts_go_with_other_methods(tables, tmp_path):
    tables = tables | {"model": GROUP}
    whole, _ = trained(tables)
    parts, _ = trained(tables | {"run": {"accumulation": 2}})
    assert apart(whole, parts) < 1e-6


def test_clipping_is_of_the_norm_of_all_gradients():
    with tiny_run({"model": GROUP, "run": {"max_grad_norm": 0.1}, "optimizer": {"momentum": 0, "nesterov": False,
                                                                               "weight_decay": 0}}) as run:  # fmt: skip
        before = [p.detach().clone() for p in run.network.parameters()]
        loop.step(run, next(run.batches()))
        moved = torch.cat([(a - b).flatten() for a, b in zip(before, run.network.parameters(), strict=True)])
        assert moved.norm().item() == pytest.approx(0.1 * 0.1, rel=1e-3)  # the rate times the norm


# --- float16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_low_precision_takes_the_steps_of_float32(name):
    """Perturbations by absolute radii and clipped entries see gradients at their own size: no factor is left over."""
    tables = {"model": GROUP, "plugins": PERTURBATIONS[name]}
    start, _ = trained(tables, steps=0)
    full, _ = trained(tables)
    for precision, error in (("fp16", 0.05), ("bf16", 0.25)):  # of 11 and of 8 bits
        low, run = trained(tables | {"run": {"precision": precision, "accumulation": 2}})
        assert not (run.loss_scale and run.loss_scale.cancelled)
        assert all(p.dtype == torch.float32 for p in low)
        assert 0 < apart(full, low) < error * apart(start, full), precision


@dataclass(eq=False)
class Overflows:
    """In step `step` (0: infinite, 1: NaN) a pass of its own is not finite: the `at`-th call of the loss."""

    at: int = 0
    step: int = 1
    calls: int = 0

    @hookimpl(wrapper=True)
    def loss(self, run, batch, x_adv):
        loss = yield
        if run.step != self.step:
            return loss
        self.calls += 1
        return loss * (float("inf"), float("nan"))[self.step] if self.calls == self.at else loss


OVERFLOWS = {name: ({"plugins": plugins}, 2) for name, plugins in PERTURBATIONS.items()} | {
    "none": ({}, 1),
    "amp": ({"plugins": PERTURBATIONS["amp"]}, 3),
    "random_weights": ({"plugins": PERTURBATIONS["random_weights"]}, 3),
    "weight_attack": ({"plugins": PERTURBATIONS["weight_attack"]}, 4),
    "rwp": ({"plugins": PERTURBATIONS["rwp"]}, 3),
    "entropy_sgd": ({"optimizer": {"name": "entropy_sgd", "langevin_steps": 2}}, 1),
    "free": ({"attack": {"name": "free", "norm": "L2", "eps": 0.5, "step_size": 0.5, "replays": 4}}, 1),
}
"""Recipe, and how often a step calls the loss."""


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_pass_that_overflows_cancels_the_step(name, step):
    """Whichever pass of the step it was: weights, running statistics, optimizer and averages stay; the scale halves."""
    tables, passes = OVERFLOWS[name]
    passes = passes if step or name not in ("random_weights", "weight_attack") else 1  # their first step is ordinary
    for at in range(1, passes + 1):
        overflows = {"overflows": {"at": at, "step": step}}
        more = {"run": {"precision": "fp16"}, "plugins": tables.get("plugins", {}) | overflows}
        with tiny_run(tables | more, [Overflows]) as run:
            batches = list(run.batches())
            for batch in batches[:step]:
                loop.step(run, batch)
            kept = run.optimizer.optimizer.state
            state = lambda run=run, kept=kept: [
                t.clone()
                for t in (*run.network.state_dict().values(), *(v for s in kept.values() for v in s.values()))
                if isinstance(t, torch.Tensor)
            ]  # fmt: skip
            before, scale, total = state(), run.loss_scale.scale, run.loss_sum.clone()
            loop.step(run, batches[step])
            assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True)), (name, at)
            assert (run.loss_scale.scale, run.loss_scale.cancelled) == (scale / 2, 1)
            assert torch.equal(run.loss_sum, total)
            loop.step(run, batches[step + 1])
            assert run.loss_scale.cancelled == 1, (name, at)
            assert not all(torch.equal(a, b) for a, b in zip(before, state(), strict=False))
            run.check()


@dataclass(eq=False)
class SecondIsNan:
    """Logits of the second step are not numbers."""

    @hookimpl(wrapper=True)
    def build_model(self, run):
        net = yield
        net.register_forward_hook(lambda m, args, out: out * (torch.nan if m.training and run.step == 1 else 1))
        return net


def test_logits_that_overflow_are_in_no_class_s_mean():
    """IKL keeps predictions over an epoch."""
    with tiny_run(
        {"loss": {"name": "ikl"}, "run": {"precision": "fp16"}, "plugins": {"second_is_nan": {}}}, [SecondIsNan]
    ) as run:
        for batch in run.batches():
            loop.step(run, batch)
        assert run.loss_scale.cancelled == 1
        assert run.recipe.slots["loss"]._sums.sum().item() == pytest.approx(2 * 8, rel=1e-3)


def test_logits_that_overflow_teach_no_guide():
    """LBGAT's second network learns from what the first one says."""
    with tiny_run(
        {"loss": {"name": "lbgat"}, "run": {"precision": "fp16"}, "plugins": {"second_is_nan": {}}}, [SecondIsNan]
    ) as run:
        guide, before = run.recipe.slots["loss"]._guide.network, []
        for batch in run.batches():
            before.append([p.detach().clone() for p in guide.parameters()])
            loop.step(run, batch)
        assert run.loss_scale.cancelled == 1
        assert all(p.isfinite().all() for p in guide.parameters())
        assert not all(torch.equal(a, b) for a, b in zip(before[-1], guide.parameters(), strict=True))


def test_the_layer_that_is_not_finite_is_named_beside_a_guide(tmp_path):
    """The search for it asks for the loss once more, when the guide has made its step."""

    @dataclass(eq=False)
    class Spoils:
        @hookimpl
        def after_step(self, run):
            if run.step == 2:
                with torch.no_grad():
                    next(run.network.parameters()).fill_(1e38)

    tables = {"loss": {"name": "lbgat"}, "plugins": {"spoils": {}}}
    with pytest.raises(TrainingFailed, match=r"not finite: .* in step [0-9]+ of .*; first the output of"):
        run_recipe(tables, tmp_path, [Spoils])


def test_what_is_never_finite_in_float16_ends_the_training(tmp_path):
    @dataclass(eq=False)
    class Burst:
        @hookimpl(wrapper=True)
        def build_model(self, run):
            net = yield
            return nn.Sequential(Scaled(1e6), net)

    tables = {"run": {"precision": "fp16", "epochs": 20}, "plugins": {"burst": {}}, "model": GROUP}
    with pytest.raises(TrainingFailed, match=r"at any scale of the loss; first the output of layer '1.net.0' \(Conv2d"):
        run_recipe(tables, tmp_path / "run", [Burst])


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_scale_and_the_cancelled_steps_survive_a_restart(tmp_path):
    tables = {"run": {"precision": "fp16"}, "plugins": {"overflows": {"at": 1}}}
    with tiny_run(tables, [Overflows]) as run:
        for batch in [*run.batches()][:2]:
            loop.step(run, batch)
        checkpoints.save(run)
        scale = run.loss_scale.scale
        state = run.loss_scale.state_dict()
        run.loss_scale.load_state_dict({"scaler": state["scaler"] | {"scale": 2.0}, "cancelled": 0})
        assert run.loss_scale.scale == 2
        assert checkpoints.resume(run)
        assert (run.loss_scale.scale, run.loss_scale.cancelled) == (scale, 1)


def test_the_scale_is_read_once_for_all_passes_of_a_step(monkeypatch):
    """To read it makes a GPU wait."""
    with tiny_run({"run": {"precision": "fp16", "accumulation": 4}, "plugins": {"awp": {}}}) as run:
        scaler, read = run.loss_scale._scaler, []
        get = scaler.get_scale
        monkeypatch.setattr(scaler, "get_scale", lambda: read.append(run.step) or get())
        for batch in [*run.batches()][:2]:
            loop.step(run, batch)
    assert read == [0, 0, 1]  # before the first step, and after each


def test_a_float16_attack_sees_gradients_that_float16_cannot_hold():
    """Gradients of 1e-9 at the logits vanish in float16; through the scaled view their signs are float32's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(5, 3, 8, 8)
    weight = torch.logspace(-9, 3, 5)[:, None] * torch.randn(5, 4)

    def gradient(model):
        x_adv = x.clone().requires_grad_()
        return torch.autograd.grad((model(x_adv) * weight).sum(), x_adv)[0]

    full = gradient(net)
    plain = gradient(Autocast(net, torch.float16))
    view = gradient(AttackView(net, precision="fp16"))
    assert (plain[0] == 0).all()
    assert (view.sign() == full.sign()).float().mean(dim=(1, 2, 3)).min() > 0.97
    error, size = ((t.abs().mean(dim=(1, 2, 3))) for t in (view - full, full))
    assert (error < 0.02 * size).all()


# --- compile, layers --------------------------------------------------------------------------------------------------


def test_a_network_that_cannot_be_compiled_trains_as_it_is(monkeypatch, capsys):
    def broken(net):
        def run(x):
            raise RuntimeError("no compiler here")

        return run

    tables = {"model": GROUP}
    plain, _ = trained(tables)
    monkeypatch.setattr(torch, "compile", broken)
    with tiny_run(tables | {"run": {"compile": True}}) as run:
        loop.step(run, next(run.batches()))
    uncompiled, _ = trained(tables | {"run": {"compile": True}})
    assert apart(plain, uncompiled) == 0


def test_a_compiled_network_is_the_one_that_losses_call(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda net: lambda x: (calls.append(len(x)), net(x))[1])
    plain, _ = trained({"plugins": {"awp": {}}})
    calls.clear()
    compiled, _ = trained({"plugins": {"awp": {}}, "run": {"compile": True}})
    assert calls == [8] + [8, 8] * 3  # the trial, and both passes of three steps
    assert apart(plain, compiled) == 0


def test_convolutions_are_channels_last_from_the_first_step_to_the_last():
    with tiny_run() as run:
        conv = next(m for m in run.network.modules() if isinstance(m, nn.Conv2d))
        loop.step(run, next(run.batches()))
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        seen = []
        handle = conv.register_forward_hook(lambda m, args, out: seen.append(out))
        run.model(next(run.batches()).x)
        handle.remove()
        assert seen[0].is_contiguous(memory_format=torch.channels_last)


class Bursts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize(("where", "told"), [
    ("forward", "the output of layer '2' (Lambda)"),
    ("backward", "the gradient of 'bias' in layer '1' (Linear)"),
])  # fmt: skip
def test_the_layer_that_is_not_finite_is_named(where, told):
    class Lambda(nn.Module):
        def forward(self, x):
            return (x - x).log() if where == "forward" else Bursts.apply(x)

    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), Lambda(), nn.Linear(5, 2))
    kept = [torch.ones_like(p) for p in net.parameters()]
    for p, gradient in zip(net.parameters(), kept, strict=True):
        p.grad = gradient
    place = first_layer(net, lambda: net(torch.rand(3, 4)).sum().backward())
    assert place in (told, told.replace("bias", "weight"))
    assert all(p.grad is g for p, g in zip(net.parameters(), kept, strict=True))
    assert not any(m._forward_hooks for m in net.modules())
    assert first_layer(nn.Sequential(nn.Linear(4, 2)), lambda: None) is None


def test_a_stop_names_the_layer_and_no_weight_was_moved_by_it(tmp_path):
    @dataclass(eq=False)
    class Breaks:
        @hookimpl(wrapper=True)
        def build_model(self, run):
            net = yield
            conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
            conv.register_forward_hook(lambda m, args, out: out / 0 if run.finite.step == 4 and m.training else out)
            return net

    with pytest.raises(TrainingFailed, match=r"in step 5 of 6 \(epoch 2\); first the output of layer 'net.0' \(Conv2d"):
        run_recipe({"plugins": {"breaks": {}}}, tmp_path / "run", [Breaks])


def test_parts_of_a_batch_keep_their_rows():
    n = 7
    columns = [torch.arange(n) for _ in range(5)]
    batch = Batch(torch.arange(float(n)).view(n, 1, 1, 1), *columns, global_size=2 * n)
    parts = batch.parts(3)
    assert [len(part.row) for _, part in parts] == [2, 2, 3]
    assert torch.cat([part.row for _, part in parts]).tolist() == list(range(n))
    assert all(torch.equal(batch.x[place], part.x) and part.global_size == 14 for place, part in parts)


def test_auto_is_decided_once_for_a_run_and_told(tmp_path, monkeypatch):
    """A trial times, and may end otherwise after a restart: a training then would not go on as it was."""
    tables = {"attack": {"precision": "auto"}, "eval": {"precision": "auto"}}
    tried = []
    conv = torch.backends.cudnn.conv
    monkeypatch.setattr(launch, "bf16_pays", lambda device: tried.append(conv.fp32_precision) or True)
    with tiny_run(tables, folder=tmp_path / "run") as run:
        assert tried == ["ieee"]  # as measures compute
        assert run.measurements.protocol().precision == "bf16"
        assert run.measurements.subject(run.network, "test").precision == "bf16"
        batch = next(run.batches())
        loop.step(run, batch)
        assert tried == ["ieee", conv.fp32_precision]
        checkpoints.save(run)
    monkeypatch.setattr(launch, "bf16_pays", lambda device: False)
    with tiny_run(tables, folder=tmp_path / "run") as run:
        assert checkpoints.resume(run)
        assert run.attack_view(precision="auto") is run.attack_view(precision="bf16")
        assert run.measurements.protocol().precision == "fp32"  # measured anew, and told
    with tiny_run(tables) as run:
        assert run.attack_view(precision="auto") is run.attack_view()


@pytest.mark.parametrize(("paying", "precision"), [(2, "bf16"), (1, "fp32")])
def test_auto_is_bf16_where_it_pays_on_every_process(paying, precision, monkeypatch):
    others = types.SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=2,
        reduce=lambda mine, how: mine + paying - 1 if how == "sum" else mine,
    )
    monkeypatch.setattr(launch, "bf16_pays", lambda device: True)
    assert launch.agreed("auto", others) == precision
    assert launch.agreed("fp16", others) == "fp16"
