"""The library as a notebook uses it: what it is given there, what it leaves as found, and what it says of mistakes."""

import argparse
import copy
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import hookflat
from hookflat.functional import seeds

B = {"eps": 0.1, "step_size": 0.04, "steps": 2}


def small(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return net.eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(24, 1, 6, 6, generator=generator), torch.randint(3, (24,), generator=generator)


class Switched(nn.Module):
    """Two heads; which one it uses stands in a namespace, a dictionary or a list."""

    def __init__(self, kind):
        super().__init__()
        self.one, self.other = small(0), small(7)
        self.switch = {"namespace": argparse.Namespace(head=0), "dict": {"deep": {"head": 0}}, "list": [0, 1]}[kind]

    def turn(self):
        match self.switch:
            case dict():
                self.switch["deep"]["head"] = 1
            case list():
                self.switch[0] = 1
            case _:
                self.switch.head = 1

    def forward(self, x):
        match self.switch:
            case dict():
                head = self.switch["deep"]["head"]
            case list():
                head = self.switch[0]
            case _:
                head = self.switch.head
        return self.other(x) if head else self.one(x)


@pytest.mark.parametrize("kind", ["namespace", "dict", "list"])
def test_a_setting_changed_in_place_is_attacked_as_it_is_now(kind, data):
    net = Switched(kind).eval()
    hookflat.robust_loss(net, data, restarts=1, **B)
    net.turn()
    assert hookflat.robust_loss(net, data, restarts=1, **B).loss == pytest.approx(
        hookflat.robust_loss(small(7), data, restarts=1, **B).loss
    )


class Keeping(nn.Module):
    """Keeps its features of the last pass, or a lock."""

    def __init__(self, lock):
        super().__init__()
        self.net, self.features = small(), {}
        if lock:
            self.lock = threading.Lock()

    def forward(self, x):
        self.features["last"] = [self.net[:4](x)]
        return self.net[4](self.features["last"][0])


@pytest.mark.parametrize("lock", [False, True])
def test_a_network_that_keeps_tensors_of_its_passes_or_cannot_be_copied_is_attacked(lock, data):
    net = Keeping(lock).eval()
    net(data[0]).sum().backward()
    assert torch.allclose(hookflat.pgd(net, *data, **B), hookflat.pgd(small(), *data, **B), atol=1e-6)


def test_inference_mode_is_refused_and_leaves_nothing_behind(data):
    net = small()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        hookflat.pgd(net, *data, **B)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        hookflat.attack_view(net)
    assert hookflat.robust_loss(net, data, restarts=1, **B).loss > hookflat.robust_loss(net, data, restarts=0).loss


class Counting(nn.Module):
    """An observer that follows what it sees, and a counter, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = small(), nn.Module()
        self.quantize = FakeQuantize(MovingAverageMinMaxObserver)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.passes += 1
        return self.net(self.quantize(x))


def test_buffers_are_left_as_found_in_evaluation_mode_too(data):
    net = Counting().eval()
    net(data[0][:2])
    before = copy.deepcopy(net.state_dict())
    first = hookflat.robust_loss(net, data, restarts=1, **B).loss
    hookflat.pgd(net, *data, **B)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert hookflat.robust_loss(net, data, restarts=1, **B).loss == first


def test_a_loader_that_shuffles(data):
    net = small()
    loader = DataLoader(TensorDataset(*data), batch_size=5, shuffle=True)
    clean = hookflat.robust_loss(net, loader, restarts=0)
    for measure in (hookflat.robust_loss, hookflat.robust_error, hookflat.autoattack):
        with pytest.raises(ValueError, match="shuffle=False"):
            measure(net, loader, clean=clean)
    shuffled = hookflat.trust(net, loader, queries=5, **B)
    assert shuffled.raised == hookflat.trust(net, data, queries=5, **B).raised
    assert shuffled.square == 0


def test_no_attack_means_the_clean_loss_in_flatness_too(data):
    net = small()
    clean = hookflat.average_flatness(net, data, samples=2, restarts=0, reference_restarts=0, **B)
    assert vars(hookflat.average_flatness(net, data, samples=2, restarts=0, **B)) == vars(clean)
    with pytest.raises(ValueError, match="reference_restarts: 0"):
        hookflat.average_flatness(net, data, samples=2, restarts=1, reference_restarts=0, **B)
    ascents = {"xi": 0.1, "attempts": 2, "sweeps": 2, **B}
    clean = hookflat.worst_flatness(net, data, robust=False, **ascents)
    assert vars(hookflat.worst_flatness(net, data, restarts=0, **ascents)) == vars(clean)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net, data: hookflat.Threat(-0.1), "eps: should be a finite"),
        (lambda net, data: hookflat.Threat(math.nan), "eps: should be a finite"),
        (lambda net, data: hookflat.Attack(0.1), "threat: should be a hookflat.Threat"),
        (lambda net, data: hookflat.Attack(step_size=-1.0), "step_size: should be a finite"),
        (lambda net, data: hookflat.robust_loss(net, data, start="Uniform"), "start: should be one of 'uniform_norm'"),
        (lambda net, data: hookflat.robust_loss(net, data, precision="bfloat16"), "precision: should be one of 'fp32'"),
        (lambda net, data: hookflat.attack_view(net, "half"), "precision: should be one of"),
        (lambda net, data: hookflat.pgd(net, *data, keep="frist"), "keep: should be one of 'best', 'last'"),
        (lambda net, data: hookflat.pgd(net, *data, mode="training"), "mode: should be one of 'eval', 'train'"),
        (lambda net, data: hookflat.apgd(net, *data, mode="training"), "mode: should be one of"),
        (lambda net, data: hookflat.pgd_tau(net, *data, tau=1, mode="training"), "mode: should be one of"),
        (lambda net, data: hookflat.worst_sharpness(net, data, weight_norm="linf"), "weight_norm: should be one of"),
        (lambda net, data: hookflat.average_sharpness(net, data, weight_norm="l2"), "weight_norm: should be one of"),
        (lambda net, data: hookflat.average_sharpness(net, data, samples=0), "samples: should be at least 1"),
        (lambda net, data: hookflat.average_flatness(net, data, samples=0), "samples: should be at least 1"),
        (lambda net, data: hookflat.worst_flatness(net, data, attempts=0), "attempts: should be at least 1"),
        (lambda net, data: hookflat.local_lipschitz(net, data, top="kl"), "top: should be one of 'L1', 'KL'"),
        (lambda net, data: hookflat.landscape(net, data, kind="filters"), "kind: should be one of 'layer'"),
        (lambda net, data: hookflat.autoattack(net, data, version="fast"), "version: should be one of 'standard'"),
        (lambda net, data: hookflat.autoattack(net, data, norm="linf"), "norm: should be one of 'Linf'"),
        (lambda net, data: hookflat.autoattacks("fast", 10), "version: should be one of"),
        (lambda net, data: hookflat.pgd(net, *data, objective=lambda m, x: m(x).sum()), "one value for each example"),
        (lambda net, data: hookflat.apgd(net, *data, objective=lambda m, x: m(x).sum()), "one value for each example"),
        (lambda net, data: hookflat.pgd(Detaching(), *data), "does the network detach them"),
        (lambda net, data: hookflat.robust_loss(Pairing(), data), r"a network gives logits \(n, K\), not tuple"),
        (lambda net, data: hookflat.robust_loss(net, TensorDataset(*data)), "not single examples: put the data set"),
        (lambda net, data: hookflat.robust_loss(net, [{"x": 1}]), "expected batches .*not dict"),
        (lambda net, data: hookflat.robust_loss(net, [(*data, data[1])]), "expected batches .*not tuple"),
        (
            lambda net, data: hookflat.distance_from_initialization(net, net.state_dict()),
            "the network's own: take copy",
        ),
        (lambda net, data: hookflat.layers(pruned()), "parametrized or pruned: make its weight a parameter first"),
        (lambda net, data: hookflat.layers(normed()), "parametrized or pruned"),
        (lambda net, data: hookflat.pgd(net.forward, *data), r"should be a torch\.nn\.Module, not method"),
        (lambda net, data: hookflat.robust_loss(net.forward, data), r"should be a torch\.nn\.Module, not method"),
        (lambda net, data: hookflat.hessian_eigenvalues(net.forward, data), r"should be a torch\.nn\.Module"),
        (lambda net, data: hookflat.landscape(net.forward, data), r"should be a torch\.nn\.Module, not method"),
        (lambda net, data: hookflat.pgd(net, data[0][0], data[1][0]), r"should be batches, \(n, C, H, W\) and \(n,\)"),
        (lambda net, data: hookflat.average_flatness(net, data, xi=-0.5), "xi: should be a finite number from 0 on"),
        (lambda net, data: hookflat.worst_flatness(net, data, xi=math.nan), "xi: should be a finite number"),
        (lambda net, data: hookflat.pgd(net, *data, alpha=0.1), "an attack has no alpha: its options are eps, norm"),
        (lambda net, data: hookflat.robust_loss(net, data, epsilon=0.1), "an attack has no epsilon"),
    ],
)
def test_mistakes_are_told(call, said, data):
    with pytest.raises((ValueError, TypeError), match=said):
        call(small(), data)


class Detaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return self.net(x.detach())


class Pairing(Detaching):
    def forward(self, x):
        return self.net(x), x


def pruned():
    net = small()
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def normed():
    net = small()
    nn.utils.spectral_norm(net[4])
    return net


def test_a_network_without_parameters_is_measured(data):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.randn(36, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return x.flatten(1) @ self.w

    clean = F.cross_entropy(Fixed()(data[0]), data[1]).item()
    assert hookflat.robust_loss(Fixed(), data, restarts=0).loss == pytest.approx(clean)
    assert hookflat.robust_loss(Fixed(), data, restarts=1, **B).loss > clean


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(3), torch.tensor(3)])
def test_seeds_are_integers_whoever_made_them(seed):
    assert seeds.derive_seed(seed, "a", seed) == seeds.derive_seed(3, "a", 3)


def test_a_run_leaves_the_number_of_threads(tmp_path):
    from hookflat.testing import TinyData, TinyModel, run_recipe

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        folder = run_recipe({"run": {"epochs": 1}}, tmp_path / "run").folder
        assert torch.get_num_threads() == before + 1
        hookflat.evaluate(folder, measures=["clean_error"], plugins=[TinyData, TinyModel], folder=tmp_path / "eval")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
