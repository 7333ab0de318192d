import gc
import weakref

import pytest
import timm
import torch
from torch import nn

import hookflat
from hookflat.functional import winograd
from hookflat.functional.attack_view import AttackView, _bf16_pays, _layout, _views, attack_view, bf16_pays, views_of
from hookflat.functional.brackets import full_float32
from hookflat.functional.flatness import adversarial_direction
from hookflat.functional.layers import Normalized
from hookflat.functional.networks import small_image_resnet
from hookflat.testing import tiny_run
from hookflat.training import loop


def small(norm="rebn"):
    net = small_image_resnet(width=8, blocks=1, channels=3, classes=5, norm=norm, act="relu")
    return Normalized(net, torch.rand(3), 0.5 + torch.rand(3))


class Branching(nn.Module):
    """A network that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        return -x if x.sum() > 1e9 else x


def test_whether_folding_is_right_is_looked_at_in_full_float32():
    """What deep networks round in TF32 is as much as the tolerance: the same weights would be folded now and then."""
    seen, backend = [], torch.backends.cudnn.conv

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    before = backend.fp32_precision
    view = AttackView(net)
    view.view.get_submodule("3").register_forward_hook(lambda *_: seen.append(backend.fp32_precision))
    try:
        backend.fp32_precision = "tf32"
        view(torch.rand(2, 3, 6, 6))
    finally:
        backend.fp32_precision = before
    assert seen == ["ieee", "ieee", "tf32"]  # the network and the folded one; then as an attack asks
    assert view._folds


def in_use(net):
    """With running statistics and norms that are not trivial."""
    net.train()
    for _ in range(3):
        net(torch.rand(8, 3, 32, 32))
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return net


NETWORKS = {
    "rebn": (small, 12),
    "batch": (lambda: small("batch"), 12),
    "group": (lambda: small("group"), 0),
    "timm resnet": (lambda: timm.create_model("resnet10t", num_classes=5), 14),
    "timm preact": (lambda: timm.create_model("resnetv2_18", num_classes=5), 8),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5), 0),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), None),
    "untraceable": (Branching, 0),
    "wide": (lambda: small_image_resnet(32, 1, 3, 5, "batch", "relu"), 12),
    "wide group": (lambda: small_image_resnet(32, 1, 3, 5, "group", "silu"), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_computes_what_the_network_computes_and_follows_its_weights(name):
    torch.manual_seed(0)
    make, folds = NETWORKS[name]
    net = in_use(make())
    view, x = AttackView(net), torch.rand(6, 3, 32, 32)
    assert folds is None or len(view._folds) == folds
    for _ in range(2):
        net.eval()
        expected = net(x)
        assert (view(x) - expected).abs().max() < 1e-5 * expected.abs().max()
        assert folds is None or len(view._folds) == folds  # the first call did not fall back
        in_use(net)
        view.refresh()


def test_has_no_memory_of_its_own_but_the_folded_convolutions():
    net = small()
    view = AttackView(net)
    own = {p.data_ptr() for p in net.parameters()} | {b.data_ptr() for b in net.buffers()}
    shared = [t.data_ptr() in own for t in [*view.parameters(), *view.buffers()]]
    assert shared.count(False) == 2 * len(view._folds)
    assert not any(p.requires_grad for p in view.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_stays_in_evaluation_mode():
    view = AttackView(small()).train()
    assert not any(m.training for m in view.modules())


def test_a_fold_that_disagrees_is_not_used():
    """A hook on the norm is lost by folding: the view notices and shows the plain network."""

    net = small().eval()
    net.net.bn1.register_forward_hook(lambda module, args, out: out + 3)
    view, x = AttackView(net), torch.rand(4, 3, 8, 8)
    assert torch.allclose(view(x), net(x), atol=1e-5)
    assert not view._folds


def test_bfloat16_is_near_and_returns_float32():
    net = in_use(small()).eval()
    x = torch.rand(4, 3, 8, 8)
    logits = AttackView(net, precision="bf16")(x)
    assert logits.dtype == torch.float32
    assert (logits - net(x)).abs().max() < 0.1 * (1 + net(x).abs().max())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_networks_with_weight_norm_are_attacked_unfolded(norm):
    """Also after a backward pass, when the old one keeps its computed weight as a tensor with a history."""
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(5, 1, 6, 6)
    net(x).sum().backward()
    net.eval()
    view = AttackView(net)
    assert torch.allclose(view(x), net(x), atol=1e-6)
    assert hookflat.robust_loss(net, (x, torch.zeros(5, dtype=torch.long)), restarts=1, steps=2).loss > 0


class Heated(nn.Module):
    """A network with a setting that is no tensor."""

    def __init__(self, net):
        super().__init__()
        self.net, self.temperature, self._shift = net, 1.0, 0.0
        self.scale = torch.ones(1)  # neither parameter nor buffer

    def forward(self, x):
        return self.net(x) * self.scale / self.temperature + self._shift * x.mean()


def change_a_setting(net):
    net.temperature = 3.0


def change_a_private_setting(net):
    net._shift = 3.0


def change_a_plain_tensor(net):
    net.scale.mul_(3)


def exchange_a_module(net):
    net.net.net.fc = nn.Linear(net.net.net.fc.in_features, 5)


def move_the_memory(net):
    net.net.net.fc.weight.data = net.net.net.fc.weight.data.clone() + 1


def step(net):
    with torch.no_grad():
        net.net.net.conv1.weight.mul_(2)


def see_other_statistics(net):
    net.net.net.bn1.running_mean.add_(1)


@pytest.mark.parametrize(
    "change",
    [
        change_a_setting,
        change_a_private_setting,
        change_a_plain_tensor,
        exchange_a_module,
        move_the_memory,
        step,
        see_other_statistics,
    ],
)
def test_the_view_of_a_network_is_made_once_and_follows_it(change):
    torch.manual_seed(0)
    net, x = Heated(in_use(small())).eval(), torch.rand(4, 3, 8, 8)
    before = attack_view(net)(x)
    assert attack_view(net) is attack_view(net)
    change(net)
    after = attack_view(net)(x)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(after, net(x), atol=1e-4)


def test_pgd_runs_on_the_view_and_its_points_are_the_networks(digits_net, digits_pair, monkeypatch):
    """Also from the library, without being asked; where a user's hooks watch, on the network."""
    x, y = (t[:20] for t in digits_pair)
    options = {"eps": 0.1, "step_size": 0.03, "steps": 3}
    calls = []
    hook = digits_net.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    plain = hookflat.pgd(digits_net, x, y, **options)
    assert calls == [20] * 4
    hook.remove()
    viewed = hookflat.pgd(digits_net, x, y, **options)
    assert attack_view(digits_net)._folds
    assert (viewed - plain).abs().gt(1e-3).float().mean() < 0.01  # a gradient near 0 may change its sign
    loss = [torch.nn.functional.cross_entropy(digits_net.eval()(z), y).item() for z in (plain, viewed)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-3)


SEARCHES = {
    "hessian_trace": lambda net, data, attack: hookflat.hessian_trace(net, data, samples=1, attack=attack),
    "sharpness": lambda net, data, attack: hookflat.sharpness(net, data, attack=attack),
    "relative_flatness": lambda net, data, attack: hookflat.relative_flatness(net, data, attack=attack),
    "flatness_along_attack": lambda net, data, attack: hookflat.flatness_along_attack(net, data, attack=attack),
    "worst_sharpness": lambda net, data, attack: hookflat.worst_sharpness(net, data, iterations=1, attack=attack),
    "margins": lambda net, data, attack: hookflat.margins(net, data, attack=attack),
    "input_gradients": lambda net, data, attack: hookflat.input_gradients(net, data, attack=attack),
    "local_lipschitz": lambda net, data, attack: hookflat.local_lipschitz(net, data, attack=attack),
    "adversarial_direction": lambda net, data, attack: adversarial_direction(net, data, sweeps=1, attack=attack),
    "transfer": lambda net, data, attack: hookflat.trust(small(), data, sibling=net, queries=0, attack=attack),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_adversarial_examples_are_searched_in_the_attack_s_precision(name):
    net, data = small(), (torch.rand(4, 3, 8, 8), torch.arange(4))
    SEARCHES[name](net, data, hookflat.Attack(steps=1, precision="bf16"))
    assert ("bf16", torch.channels_last) in _views[net]


def test_views_do_not_keep_networks_alive():
    net = small()
    kept = weakref.ref(net)
    attack_view(net)
    del net
    gc.collect()
    assert kept() is None


def test_trying_bfloat16_draws_nothing():
    _bf16_pays.cache_clear()
    before = torch.random.get_rng_state()
    bf16_pays(torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_a_gpu_in_full_float32_takes_images_channel_by_channel():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with full_float32():
        assert _layout("fp32", gpu) == torch.contiguous_format
        assert _layout("bf16", gpu) == _layout("fp32", cpu) == torch.channels_last
    assert _layout("fp32", gpu) == torch.channels_last  # TF32, torch's default


@pytest.mark.parametrize("channels", [winograd.CHANNELS, 4], ids=["torch's", "winograd"])
def test_a_view_that_forgot_is_the_same_again_and_follows_its_network(channels, monkeypatch):
    for name in ("CHANNELS", "WEIGHT_CHANNELS"):
        monkeypatch.setattr(winograd, name, channels)
    net = in_use(small()).eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        view = AttackView(net)
        before = view(x)
        transformed = [m for m in view.modules() if isinstance(m, winograd.WinogradConv2d) and m._transform is not None]
        assert bool(transformed) == (channels == 4)
        folded = [fold.view.weight for fold in view._folds]
        view.forget()
        assert [weight.untyped_storage().nbytes() for weight in folded] == [0] * len(folded)
        assert torch.equal(view(x), before)
        view.forget()
        for p in net.parameters():
            p.mul_(1.1)
        view.refresh()
        torch.testing.assert_close(view(x), net(x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(view(x), before)


def test_what_a_measure_made_is_forgotten_by_the_next_step():
    with tiny_run() as run:
        batches = run.batches()
        hookflat.robust_loss(
            run.network,
            run.data.test.__getitems__(torch.arange(4)),
            attack=hookflat.Attack(hookflat.Threat(0.1), 0.05, 2),
        )
        (view,) = views_of(run.network)
        held = [fold.view.weight.untyped_storage() for fold in view._folds]
        assert all(storage.nbytes() for storage in held)
        loop.step(run, next(batches))
        assert held
        assert not any(storage.nbytes() for storage in held)
