"""Winograd's convolutions against torch's."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hookflat import hookimpl
from hookflat.functional import winograd
from hookflat.functional.attack_view import AttackView
from hookflat.functional.networks import small_image_resnet
from hookflat.functional.winograd import WinogradConv2d, WinogradConvolutions, conv2d, pays
from hookflat.testing import tiny_run
from hookflat.training import loop


def wide(channels=256, out=256, **options):
    return nn.Conv2d(channels, out, 3, padding=1, **options).requires_grad_(False)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(winograd, "FULL", 0)


@pytest.mark.parametrize("shape", [(17, 256, 8, 8), (11, 256, 7, 9), (64, 256, 1, 1), (40, 256, 4, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_convolutions(shape, bias, layout, any_size):
    torch.manual_seed(0)
    conv = wide(out=264, bias=bias)
    assert pays(conv)
    fast, exact = WinogradConv2d(conv), copy.deepcopy(conv).double()
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    y, expected = fast(x), exact(x.double())
    assert (y - expected).abs().max() < 2e-5 * expected.abs().max()
    weight = torch.randn_like(y)
    (ours,) = torch.autograd.grad((weight * y).sum(), x)
    (theirs,) = torch.autograd.grad((weight * expected).sum(), x)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_a_large_batch_goes_through_in_parts(monkeypatch):
    torch.manual_seed(0)
    fast, x = WinogradConv2d(wide()), torch.randn(18, 256, 8, 8)
    whole = fast(x)
    monkeypatch.setattr(winograd, "_CACHE", 1)
    assert torch.allclose(fast(x), whole, atol=1e-5)


def test_gradients_by_weights_of_a_large_batch_are_the_sum_of_its_parts(monkeypatch):
    torch.manual_seed(0)
    x, weight = torch.randn(18, 128, 8, 8), torch.randn(128, 128, 3, 3).requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), weight)
    monkeypatch.setattr(winograd, "_CACHE", 1)
    (ours,) = torch.autograd.grad(conv2d(x, weight, padding=1).square().sum(), weight)
    assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()


def test_small_integers_come_out_as_they_are(any_size):
    """An independent sum: images and filters of ones count the pixels under the filter."""
    conv = wide(bias=False)
    conv.weight.fill_(1)
    y = WinogradConv2d(conv)(torch.ones(16, 256, 6, 6))
    rows = torch.tensor([2.0, 3, 3, 3, 3, 2])
    assert torch.allclose(y[0, 0], 256 * rows[:, None] * rows, rtol=1e-5)


@pytest.mark.parametrize("shape", [(17, 256, 8, 8), (41, 256, 7, 9), (150, 256, 1, 1), (11, 128, 16, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_by_weights_are_the_convolutions(shape, bias, layout, any_size):
    torch.manual_seed(0)
    conv = wide(shape[1], 264, bias=bias).requires_grad_().to(memory_format=layout)
    exact = copy.deepcopy(conv).double()
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    y, expected = conv2d(x, conv.weight, conv.bias, padding=1), exact(x.double())
    factors = torch.randn_like(y)
    ours = torch.autograd.grad((factors * y).sum(), [x, *conv.parameters()])
    theirs = torch.autograd.grad((factors * expected).sum(), [x, *exact.parameters()])
    for mine, true in zip((y, *ours), (expected, *theirs), strict=True):
        assert (mine - true).abs().max() < 2e-5 * true.abs().max()


def counting(monkeypatch, **sizes):
    """How often the gradient by weights was Winograd's, at these sizes from which on it is."""
    calls = []
    for name, size in sizes.items():
        monkeypatch.setattr(winograd, name, size)
    by_weights = winograd._by_weights
    monkeypatch.setattr(winograd, "_by_weights", lambda x, g: calls.append(len(x)) or by_weights(x, g))
    return calls


def test_gradients_of_gradients_go_through(monkeypatch):
    """GradAlign and others penalise gradients by the images."""
    calls = counting(monkeypatch, WEIGHT_CHANNELS=1, WEIGHT_TILES=1, CHANNELS=1, ONCE=1, FULL=0)
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 7, 6, requires_grad=True)

    def penalised(net):
        (by_x,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(by_x.square().sum(), [x, conv.weight])

    for mine, theirs in zip(penalised(WinogradConvolutions(conv)), penalised(conv), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert calls


def test_gradients_example_by_example_go_through(monkeypatch):
    calls = counting(monkeypatch, WEIGHT_CHANNELS=1, WEIGHT_TILES=1, CHANNELS=1, ONCE=1, FULL=0)
    torch.manual_seed(0)
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(5, 3, 7, 6)

    def loss(convolution, w, one):
        return convolution(one[None], w, padding=1).square().sum()

    mine, theirs = (
        torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, None, 0))(c, weight.requires_grad_(), x)
        for c in (conv2d, torch.conv2d)
    )
    assert calls
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_training_passes_of_wide_networks_use_it_and_give_the_networks_gradients(monkeypatch):
    calls = counting(monkeypatch, WEIGHT_CHANNELS=8, CHANNELS=8, FULL=0)
    with tiny_run({"model": {"name": "resnet18", "width": 8}}) as run:
        assert isinstance(run.model, WinogradConvolutions)
        x = torch.rand(64, *run.data.train.shape, device=run.device)
        mine, theirs = (
            torch.autograd.grad(net(x).square().mean(), list(run.network.parameters()), allow_unused=True)
            for net in (run.model, run.network)
        )
        assert calls
        for name, ours, expected in zip(dict(run.network.named_parameters()), mine, theirs, strict=True):
            if expected.norm() > 1e-4:  # a convolution's bias before batch norm has none
                assert (ours - expected).norm() < 0.02 * expected.norm(), name  # ReLUs next to zero switch
        before = len(calls)
        loop.step(run, next(run.batches()))
        assert len(calls) > before


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compile": True}, {}])
def test_other_training_passes_are_as_they_were(options, monkeypatch):
    monkeypatch.setattr(winograd, "WEIGHT_CHANNELS", 8 if options else 128)
    monkeypatch.setattr(torch, "compile", lambda net: net)  # a minute of compiling says nothing here
    with tiny_run({"run": options, "model": {"name": "resnet18", "width": 8}}) as run:
        assert not isinstance(run.model, WinogradConvolutions)


def test_images_that_would_leave_tiles_empty_go_through_torchs(monkeypatch):
    def fails(*_):
        raise AssertionError

    conv = wide()
    fast = WinogradConv2d(conv)
    monkeypatch.setattr(winograd, "_part", fails)
    for side in (1, 2, 3, 5, 6, 9):
        fast(torch.rand(64, 256, side, side))
    for side in (4, 7, 8):
        with pytest.raises(AssertionError):
            fast(torch.rand(64, 256, side, side))


@pytest.mark.parametrize(
    "conv",
    [
        wide(64, 256),
        wide(groups=2),
        wide(stride=2),
        wide(padding_mode="reflect"),
        nn.Conv2d(256, 256, 1),
        wide().double(),
        nn.Linear(256, 256),
    ],
)
def test_other_modules_are_left_alone(conv):
    assert not pays(conv)


def test_changed_weights_are_seen_after_a_refresh_and_autocast_is_respected():
    torch.manual_seed(0)
    conv, x = wide(), torch.randn(16, 256, 8, 8)
    fast = WinogradConv2d(conv)
    conv.weight.mul_(-2)
    fast.refresh()
    assert torch.allclose(fast(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16


def test_views_of_wide_networks_use_it_and_follow_the_weights():
    torch.manual_seed(0)
    net = small_image_resnet(32, 1, 3, 5, "batch", "relu").eval()
    view, x = AttackView(net), torch.rand(64, 3, 16, 16)
    assert sum(isinstance(m, WinogradConv2d) for m in view.modules()) == 2
    for _ in range(2):
        assert (view(x) - net(x)).abs().max() < 1e-5 * net(x).abs().max()
        with torch.no_grad():
            net.layer4[0].conv2.weight.mul_(1.5)
        view.refresh()


def test_a_training_step_holds_no_transforms_behind_its_attack(monkeypatch):
    monkeypatch.setattr(winograd, "CHANNELS", 1)
    monkeypatch.setattr(winograd, "TILES", 1)
    monkeypatch.setattr(winograd, "FULL", 0)
    held = {}

    @dataclass(eq=False)
    class Looks:
        @hookimpl(wrapper=True)
        def craft(self, run):
            x_adv = yield
            held["in the attack"] = transforms(run)
            return x_adv

        @hookimpl(wrapper=True)
        def gradients(self, run):
            held["behind it"] = transforms(run)
            return (yield)

    def transforms(run):
        convolutions = [m for m in run.attack_model.modules() if isinstance(m, WinogradConv2d)]
        return [m._transform is not None for m in convolutions]

    with tiny_run({"plugins": {"looks": {}}}, [Looks]) as run:
        loop.step(run, next(run.batches()))
    assert held == {"in the attack": [True], "behind it": [False]}
