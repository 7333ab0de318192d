"""AutoAttack through pyautoattack: the package's own numbers, and nothing left behind."""

import copy
import sys

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

import hookflat
from hookflat.functional.autoattack import _Climb, autoattacks
from hookflat.functional.work import Work
from hookflat.testing import Found

pytestmark = pytest.mark.usefixtures("short_autoattack")


@pytest.fixture(scope="module")
def net(digits_pair):
    """A perceptron that gets most of the forty digits right: cheap to attack a thousand times."""
    x, y = digits_pair
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    net.zero_grad()
    return net.eval()


def directly(net, x, y, batch_size, **options):
    """The package as its README has it, with a frozen network."""
    for p in net.parameters():
        p.requires_grad_(False)
    try:
        with torch.random.fork_rng():
            attack = AutoAttack(net, **options)
            if options["version"] == "custom":
                attack.apgd.n_restarts = attack.fab.n_restarts = 1
            trace = sys.gettrace()
            answers = attack.run_standard_evaluation(x, y, batch_size=batch_size)[1]
            sys.settrace(trace)
        return answers != y
    finally:
        for p in net.parameters():
            p.requires_grad_(True)


@pytest.mark.parametrize(
    ("version", "attacks", "norm", "eps"),
    [
        ("standard", None, "Linf", 0.15),
        ("custom", ["apgd-ce", "apgd-dlr"], "Linf", 0.15),
        ("custom", ["square"], "Linf", 0.15),
        ("rand", None, "Linf", 0.15),
        ("standard", None, "L2", 0.5),
        ("standard", None, "L1", 2.0),
    ],
)
def test_the_robust_accuracy_is_the_package_s(net, digits_pair, version, attacks, norm, eps):
    x, y = (t[: 12 if norm == "L1" else 14] for t in digits_pair)  # L1 takes its time
    listed = {} if attacks is None else {"attacks": attacks}
    expected = directly(net, x, y, 8, norm=norm, eps=eps, seed=3, version=version, **listed)
    options = {"norm": norm, "eps": eps, "version": version, "attacks": attacks}
    measured = hookflat.autoattack(net, (x, y), seed=3, batch_size=8, **options)
    assert torch.equal(measured.broken_by >= 0, expected)
    assert measured.error == expected.double().mean().item()
    assert 0 < measured.clean_error < measured.error < 1
    assert sum(measured.broken.values()) + measured.clean_error == pytest.approx(measured.error)
    assert list(measured.broken) == autoattacks(version, 10, attacks)
    assert f"robust accuracy after {next(iter(measured.broken)).upper()}" in measured.log


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t"])
def test_what_is_broken_goes_through_the_network_no_more(net, digits_pair, attack, monkeypatch):
    x, y = (t[net(digits_pair[0]).argmax(dim=1) == digits_pair[1]] for t in digits_pair)
    counts = []
    monkeypatch.setattr(Work, "passed", lambda work, count: counts.append(count))
    options = {"norm": "Linf", "eps": 0.15, "seed": 0, "version": "custom", "attacks": [attack]}
    measured = hookflat.autoattack(net, (x, y), batch_size=len(y), **options)
    assert torch.equal(measured.broken_by >= 0, directly(net, x, y, len(y), **options))
    assert 0.2 < measured.error < 0.9
    ours, counts[:] = sum(counts), []
    monkeypatch.setattr(_Climb, "logits", lambda climb, network, points: network(points))
    assert torch.equal(hookflat.autoattack(net, (x, y), batch_size=len(y), **options).broken_by, measured.broken_by)
    assert ours < (0.7 if attack == "apgd-ce" else 0.95) * sum(counts)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(classes):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    net[1].weight.data = torch.randn(classes, 16, generator=generator)
    x = torch.rand(12, 1, 4, 4, generator=generator)
    y = net(x).argmax(dim=1)
    small, large = (hookflat.autoattack(net, (x, y), eps=eps, batch_size=12).error for eps in (1e-6, 0.5))
    assert small == 0
    assert large > 0.5
    if classes == 2:  # the linear bound: an example falls where eps ||d||_1 exceeds its margin
        d = net[1].weight[1] - net[1].weight[0]
        margins = (net(x)[:, 1] - net(x)[:, 0]).abs()
        eps = 1.05 * (margins.sort().values[5:7].mean() / d.abs().sum()).item()
        inside = ((x > eps) & (x < 1 - eps)).flatten(1).all(dim=1)
        measured = hookflat.autoattack(net, (x, y), eps=eps, batch_size=12)
        assert torch.equal((measured.broken_by >= 0)[inside], (margins < eps * d.abs().sum())[inside])


def test_networks_in_double_precision(net, digits_pair):
    x, y = (t[:8] for t in digits_pair)
    options = {"eps": 0.15, "version": "custom", "attacks": ["apgd-ce"]}
    single = hookflat.autoattack(net, (x, y), **options)
    double = hookflat.autoattack(copy.deepcopy(net).double(), (x.double(), y), **options)
    assert torch.equal(double.broken_by, single.broken_by)


def test_colour_images_may_lie_in_memory_as_they_like():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    x = torch.rand(6, 3, 4, 4)
    pairs = [(layout, net(x).argmax(dim=1)) for layout in (x, x.contiguous(memory_format=torch.channels_last))]
    one, other = (
        hookflat.autoattack(net, pair, eps=0.5, norm="L1", version="custom", attacks=["apgd-ce"]) for pair in pairs
    )
    assert one.broken_by.tolist() == other.broken_by.tolist()


def test_attacks_that_are_not_defined_for_few_classes_are_left_out():
    assert autoattacks("standard", 10) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert autoattacks("standard", 4) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert autoattacks("standard", 3) == ["apgd-ce", "fab", "square"]
    assert autoattacks("plus", 3) == ["apgd-ce", "apgd-dlr", "fab", "square"]
    assert autoattacks("plus", 2) == ["apgd-ce", "fab", "square"]


def test_wrong_requests_are_told(net, digits_pair):
    with pytest.raises(ValueError, match="no attack 'pgd'"):
        hookflat.autoattack(net, digits_pair, version="custom", attacks=["pgd"])
    with pytest.raises(ValueError, match="and only there"):
        hookflat.autoattack(net, digits_pair, attacks=["square"])


def test_nothing_is_left_behind(net, digits_pair):
    x, y = (t[:6] for t in digits_pair)
    net.train()
    before, state = Found.of(net), torch.random.get_rng_state()

    def trace(*_):
        return None

    sys.settrace(trace)
    try:
        hookflat.autoattack(net, (x, y), eps=0.05, version="custom", attacks=["apgd-ce", "fab"])
        assert sys.gettrace() is trace
    finally:
        sys.settrace(None)
    before.assert_unchanged(net)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    net.eval()


def test_an_interrupted_attack_goes_on_where_it_stopped(tmp_path, net, digits_pair, monkeypatch):
    x, y = (t[:12] for t in digits_pair)
    options = {"eps": 0.15, "version": "custom", "attacks": ["apgd-ce", "apgd-dlr", "fab"], "batch_size": 5}
    whole = hookflat.autoattack(net, (x, y), **options)
    ran = []
    evaluate = AutoAttack.run_standard_evaluation

    def counted(self, *arguments, **named):
        if self.attacks_to_run == ["apgd-dlr"] and not ran.count("stopped"):
            ran.append("stopped")
            raise KeyboardInterrupt
        ran.append(self.attacks_to_run[0])
        return evaluate(self, *arguments, **named)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", counted)
    with pytest.raises(KeyboardInterrupt):
        hookflat.autoattack(net, (x, y), **options, work=Work(tmp_path))
    again = hookflat.autoattack(net, (x, y), **options, work=Work(tmp_path))
    first = ran.index("stopped")
    assert "apgd-ce" in ran[:first]
    assert "apgd-ce" not in ran[first:]
    assert torch.equal(again.broken_by, whole.broken_by)
    assert again.log.splitlines()[:4] == whole.log.splitlines()[:4]
    right = 100 * (whole.broken_by < 0).double().mean().item()  # of all, not of those that an attack was given
    assert whole.log.splitlines()[-1].endswith(f"images after {[*whole.broken][-1]}: {right:.2f}%")
