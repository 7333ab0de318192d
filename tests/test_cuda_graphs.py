"""Replayed passes, on the CPU: what stands in for a graph keeps its results in one place, as graphs do."""

import pytest
import torch
from torch import nn

import hookflat
from hookflat.functional import cuda_graphs
from hookflat.functional.attack_view import attack_view, once
from hookflat.functional.attacks import gradient_at
from hookflat.functional.layers import AuxiliaryHead


class Replay:
    """Takes the place of `torch.cuda.make_graphed_callables`."""

    def __init__(self):
        self.captured, self.replayed = [], 0

    def __call__(self, net, samples):
        (static,) = samples
        static = static.detach().clone().requires_grad_()
        output, slope = net(static).detach(), torch.empty_like(static)
        self.captured.append(tuple(static.shape))
        outer = self

        class Graph(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                outer.replayed += 1
                static.data.copy_(x)
                output.copy_(net(static).detach())
                return output.detach()

            @staticmethod
            def backward(ctx, gradient):
                with torch.enable_grad():
                    slope.copy_(torch.autograd.grad(net(static), static, gradient)[0])
                return slope.detach()

        return Graph.apply


@pytest.fixture
def replay(monkeypatch):
    stand_in = Replay()
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)
    return stand_in


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()


X, Y = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])

ATTACKS = {
    "best": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9),
    "last": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9, keep="last"),
    "momentum": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9, momentum=0.9),
    "apgd": lambda net: hookflat.apgd(net, X, Y, eps=0.1, steps=20),
    "loss": lambda net: (
        hookflat.robust_loss(net, (X, Y), eps=0.1, step_size=0.02, steps=9, restarts=3).per_example.loss
    ),
    "autoattack": lambda net: torch.tensor(
        hookflat.autoattack(net, (X, Y), eps=0.1, version="custom", attacks=["apgd-ce", "fab-t"]).error
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_replayed_attacks_find_what_others_find(name, replay, monkeypatch, short_autoattack):
    net = network()
    replayed = ATTACKS[name](net)
    assert replay.replayed
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: False)
    assert torch.equal(replayed, ATTACKS[name](net))


def test_a_second_pass_of_an_objective_does_not_overwrite_the_first(replay):
    view = attack_view(network())

    def objective(model, x):
        return (model(x) * model(x.flip(3))).sum(dim=1)

    for _ in range(cuda_graphs.AFTER + 2):
        _, value, gradient = gradient_at(view, objective, X)
    x = X.clone().requires_grad_()
    expected = objective(view, x)
    assert torch.equal(value, expected)
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), x)[0], atol=1e-7)


def test_what_a_pass_gave_stays_when_the_next_one_comes(replay):
    view = attack_view(network())

    def objective(model, x):
        return model(x)[:, 0]  # the logits' own memory

    for _ in range(cuda_graphs.AFTER + 1):
        _, value, gradient = gradient_at(view, objective, X)
    assert replay.replayed
    before = value.clone(), gradient.clone()
    gradient_at(view, objective, 1 - X)
    assert torch.equal(value, before[0])
    assert torch.equal(gradient, before[1])


def test_graphs_follow_the_weights(replay):
    net = network()
    ATTACKS["best"](net)
    with torch.no_grad():
        net[0].weight.mul_(-2)
        net[1].running_mean.add_(0.3)
    assert torch.equal(ATTACKS["best"](net), hookflat.pgd(_copy(net), X, Y, eps=0.1, step_size=0.02, steps=9))
    assert len(replay.captured) == 2  # the copy's is another


def _copy(net):
    other = network()
    other.load_state_dict(net.state_dict())
    return other


def test_shapes_are_captured_when_they_come_back_and_the_latest_are_kept(replay):
    view = attack_view(network())
    for size in (1, 2, 3, 4, 5, 1):
        for _ in range(cuda_graphs.AFTER + 1):
            gradient_at(view, lambda model, x: model(x).sum(dim=1), X[:size])
    sizes = [shape[0] for shape in replay.captured]
    assert sizes == [1, 2, 3, 4, 5, 1]  # four are kept, so the first had to go
    for _ in range(3):
        gradient_at(view, lambda model, x: model(x).sum(dim=1), X[:5])
    assert len(replay.captured) == len(sizes)


def test_a_network_that_cannot_be_captured_runs_as_it_is(replay, monkeypatch):
    def refuses(net, samples):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuses)
    net = network()
    with pytest.warns(UserWarning, match="no CUDA graph of the attacked network, it runs as it is: operation not perm"):
        found = ATTACKS["best"](net)
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: False)
    assert torch.equal(found, ATTACKS["best"](net))


def test_who_looks_inside_is_not_replayed(replay):
    net = network()
    assert once(net) is net
    assert isinstance(once(attack_view(net)), cuda_graphs.Once)
    view = attack_view(net)
    view.view.get_submodule("0").register_forward_hook(lambda *a: None)
    assert once(view) is view
    two = nn.Sequential(nn.Flatten(), AuxiliaryHead(nn.Linear(36, 3), nn.Linear(36, 4))).eval()
    assert once(attack_view(two)) is attack_view(two)


def test_only_on_a_gpu_and_by_a_process_that_is_alone(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not cuda_graphs.possible(cpu)
    assert cuda_graphs.possible(gpu)
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    assert not cuda_graphs.possible(gpu)
    monkeypatch.delenv(cuda_graphs.SWITCH)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert not cuda_graphs.possible(gpu)
