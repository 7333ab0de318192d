"""Replayed passes, on the CPU: what stands in for a graph keeps its results in one place, as graphs do."""

import pytest
import torch
from torch import nn

import hookflat
from hookflat.functional import cuda_graphs
from hookflat.functional.attack_view import attack_view, once
from hookflat.functional.attacks import gradient_at
from hookflat.functional.brackets import statistics_kept
from hookflat.functional.cuda_graphs import Replayed
from hookflat.functional.layers import AuxiliaryHead
from hookflat.testing import tiny_run
from hookflat.training import epochs, loop


class Replay:
    """Takes the place of `torch.cuda.make_graphed_callables`."""

    def __init__(self):
        self.captured, self.replayed = [], 0

    def __call__(self, net, samples, *, num_warmup_iters, allow_unused_input=False):
        if len(samples) > 1:
            return self._to_weights(net, *samples)
        assert torch.is_grad_enabled()  # a pass back is captured, too
        (static,) = samples
        static = static.detach().clone().requires_grad_()
        output, slope, under_way = net(static).detach(), torch.empty_like(static), []
        self.captured.append(tuple(static.shape))
        outer = self

        class Graph(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                outer.replayed += 1
                static.data.copy_(x)
                with torch.enable_grad():
                    under_way[:] = [net(static)]
                output.copy_(under_way[0].detach())
                return output.detach()

            @staticmethod
            def backward(ctx, gradient):
                slope.zero_()  # a second time its activations are gone
                if under_way:
                    slope.copy_(torch.autograd.grad(under_way.pop(), static, gradient)[0])
                return slope.detach()

        return Graph.apply

    def _to_weights(self, net, x, *leaves):
        for _ in range(3):  # as graphs are warmed up
            output = net(x, *leaves).detach()
        slopes, under_way = [torch.empty_like(leaf) for leaf in leaves], []
        self.captured.append(tuple(x.shape))
        outer = self

        class Graph(torch.autograd.Function):
            @staticmethod
            def forward(ctx, here, *weights):
                assert [w.data_ptr() for w in weights] == [leaf.data_ptr() for leaf in leaves]
                outer.replayed += 1
                x.copy_(here)
                with torch.enable_grad():
                    under_way[:] = [net(x, *leaves)]
                output.copy_(under_way[0].detach())
                return output.detach()

            @staticmethod
            def backward(ctx, gradient):
                gradients = torch.autograd.grad(under_way.pop(), leaves, gradient, allow_unused=True)
                for slope, g in zip(slopes, gradients, strict=True):
                    slope.zero_() if g is None else slope.copy_(g)
                return None, *(
                    None if g is None else slope.detach() for slope, g in zip(slopes, gradients, strict=True)
                )

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


def two_passes(model, x):
    return (model(x) * model(x.flip(3))).sum(dim=1)


ATTACKS = {
    "best": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9),
    "last": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9, keep="last"),
    "momentum": lambda net: hookflat.pgd(net, X, Y, eps=0.1, step_size=0.02, steps=9, momentum=0.9),
    "apgd": lambda net: hookflat.apgd(net, X, Y, eps=0.1, steps=20),
    "loss": lambda net: (
        hookflat.robust_loss(net, (X, Y), eps=0.1, step_size=0.02, steps=9, restarts=3).per_example.loss
    ),
    "until a cycle": lambda net: hookflat.pgd(
        net, X, Y, eps=0.1, step_size=0.02, steps=9, cycle_detection=True, objective=two_passes
    ),
    "friendly": lambda net: hookflat.pgd_tau(net, X, Y, tau=2, eps=0.1, step_size=0.02, steps=9),
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


def test_fab_goes_back_through_a_pass_for_every_class(replay, monkeypatch, short_autoattack):
    x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    collected = []
    for possible in (True, False):
        monkeypatch.setattr(cuda_graphs, "possible", lambda device, possible=possible: possible)
        net = network()
        y = net(x).argmax(dim=1)
        collected.append(hookflat.autoattack(net, (x, y), eps=0.1, version="custom", attacks=["fab"]).error)
    assert collected[0] == collected[1] > 0.1


def test_a_second_pass_of_an_objective_does_not_overwrite_the_first(replay):
    view = attack_view(network())
    for _ in range(cuda_graphs.AFTER + 2):
        _, value, gradient = gradient_at(view, two_passes, X)
    x = X.clone().requires_grad_()
    expected = two_passes(view, x)
    assert torch.equal(value, expected)
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), x)[0], atol=1e-7)


def test_passes_without_a_gradient_are_replayed_but_not_behind_one(replay):
    view = attack_view(network())
    for _ in range(cuda_graphs.AFTER + 1):
        gradient_at(view, lambda model, x: model(x).sum(dim=1), X)
    replay.replayed = 0
    with torch.no_grad():
        first = once(view)(X)
        second = once(view)(1 - X)
    assert replay.replayed == 2
    assert torch.equal(first, view(X))
    assert torch.equal(second, view(1 - X))

    def objective(model, x):
        with torch.no_grad():
            before = model(1 - x)
        value = (model(x) * before).sum(dim=1)
        with torch.no_grad():  # the gradient of the pass above is still to come
            behind = model(x.flip(3)).sum(dim=1)
        return value + behind

    gradients = gradient_at(view, objective, X)
    assert replay.replayed == 4
    x = X.clone().requires_grad_()
    expected = objective(view, x)
    assert torch.equal(gradients[1], expected)
    assert torch.equal(gradients[2], torch.autograd.grad(expected.sum(), x)[0])


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
    def refuses(net, samples, **_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuses)
    net = network()
    with pytest.warns(UserWarning, match="no CUDA graph of the attacked network, it runs as it is: operation not perm"):
        attacked = ATTACKS["best"](net)
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: False)
    assert torch.equal(attacked, ATTACKS["best"](net))


def test_other_threads_go_on_while_a_pass_is_captured(replay, monkeypatch):
    """A loader's that pins memory would end in an error: where torch can, captures forbid things to their own alone."""
    modes = []

    def knows(net, samples, *, num_warmup_iters, allow_unused_input=False, capture_error_mode="global"):
        modes.append(capture_error_mode)
        return replay(net, samples, num_warmup_iters=num_warmup_iters, allow_unused_input=allow_unused_input)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", knows)
    ATTACKS["best"](network())
    _trained({})
    assert set(modes) == {"thread_local"}
    assert len(modes) > 1


def test_a_capture_leaves_no_trace_in_generators(replay):
    """It takes a pass more, and falls elsewhere in a run that goes on."""

    class Drawing(nn.Module):
        def forward(self, x):
            return x + 0 * torch.rand(())

    net = nn.Sequential(Drawing(), *network()).train()
    model, draws = Replayed(net), []
    for _ in range(cuda_graphs.AFTER):
        model(X)
    torch.manual_seed(5)
    cuda_graphs._captured(lambda x, *leaves: draws.append(torch.rand(())) or net(x), (X.clone(), *net.parameters()))
    torch.manual_seed(5)
    assert draws[0] == draws[1]


def test_what_computes_its_activations_again_is_not_captured(replay):
    net = network()
    net.grad_checkpointing = True
    view, model = attack_view(net), Replayed(net.train())
    assert once(view) is view
    for _ in range(cuda_graphs.AFTER + 2):
        model(X).sum().backward()
    assert not replay.captured


def test_memory_is_given_back_where_the_training_is_over(replay, monkeypatch):
    freed = []
    monkeypatch.setattr(cuda_graphs, "_free", lambda: freed.append(1))
    with tiny_run(SMALL) as run:
        for _ in range(2):
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
        views, model = run.kept_views(), next(m for m in run.model.modules() if isinstance(m, Replayed))
        assert any(view._graphs._captured for view in views)
        assert model._passes
        freed.clear()
        epochs.finish(run)
        assert len(freed) >= 2
        assert not model._passes
        assert not any(view._graphs._captured for view, _ in run._views.values())


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
    for processes in (1, 2):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda n=processes: n)
        assert cuda_graphs.possible(gpu) == (processes == 1)


SMALL = {
    "data": {"name": "digits", "train": 64, "test": 16},
    "model": {"name": "resnet_small", "width": 8},
    "attack": {"name": "pgd", "eps": 0.1, "step_size": 0.05, "steps": 2},
    "run": {"batch_size": 16, "epochs": 2, "seed": 3},
}
METHODS = {
    "at": {},
    "trades": {"loss": {"name": "trades"}},
    "mart": {"loss": {"name": "mart"}},
    "averaging": {"plugins": {"averaging": {"decay": 0.9}}},
    "awp": {"plugins": {"awp": {"xi": 0.01}}},
    "sam": {"plugins": {"sam": {}}},
    "random weights": {"plugins": {"random_weights": {"xi": 0.5}}},
    "entropy-sgd": {"optimizer": {"name": "entropy_sgd", "langevin_steps": 3}},
    "parts": {"run": SMALL["run"] | {"accumulation": 2}},
    "bf16": {"run": SMALL["run"] | {"precision": "bf16"}},
    "fp16": {"run": SMALL["run"] | {"precision": "fp16"}},
}


def _trained(tables):
    with tiny_run(SMALL | tables) as run:
        for _ in range(2):
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
        return [t.clone() for t in run.network.state_dict().values()]


@pytest.mark.parametrize("method", METHODS)
def test_replayed_training_is_the_same(method, replay, monkeypatch):
    replayed = _trained(METHODS[method])
    assert replay.captured
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: False)
    plain = _trained(METHODS[method])
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))


@pytest.fixture
def training(replay):
    net = network().train()
    model = Replayed(net)
    for _ in range(cuda_graphs.AFTER + 1):
        model(X).sum().backward()
    assert replay.replayed
    replay.replayed = 0
    net.zero_grad()
    return net, model


def _gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), [*model.parameters()])


def test_passes_under_way_do_not_touch_each_other(training, replay):
    net, model = training
    with statistics_kept(net.modules()):  # what is compared must not depend on the order
        expected = [_gradients(net, x) for x in (X, 1 - X)]
    losses = [model(x).square().sum() for x in (X, 1 - X)]
    gradients = [torch.autograd.grad(loss, [*net.parameters()]) for loss in losses]
    assert len(replay.captured) == 2
    for a, b in zip(gradients, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))
    later = [g.clone() for g in gradients[0]]
    _gradients(model, X.flip(3))
    assert all(torch.equal(*pair) for pair in zip(gradients[0], later, strict=True))
    assert len(replay.captured) == 2  # both are free again


def test_a_capture_does_not_touch_a_plain_pass_under_way(replay):
    net = network().train()
    model = Replayed(net)
    for _ in range(cuda_graphs.AFTER):
        model(X).sum().backward()
    net.zero_grad()
    plain = model(X[:4]).square().sum()
    before = [b.clone() for b in net.buffers()]
    captured = model(X).sum()
    assert len(replay.captured) == 1
    gradients = torch.autograd.grad(plain, [*net.parameters()])
    captured.backward()
    other = network().train()
    other.load_state_dict(net.state_dict())
    expected = torch.autograd.grad(other(X[:4]).square().sum(), [*other.parameters()])
    assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))
    assert [int(b) - int(a) for a, b in zip(before, net.buffers(), strict=True) if not b.dim()] == [1]


def test_the_latest_training_passes_are_kept(training, replay, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "PASSES", 4)
    _, model = training
    for size in (4, 3, 2, 5):
        for _ in range(cuda_graphs.AFTER + 1):
            model(X[:size]).sum().backward()
    assert [shape[0] for shape in replay.captured] == [5, 4, 3, 2]
    for size in (4, 3, 2, 5):
        model(X[:size]).sum().backward()
    assert len(replay.captured) == 4


def test_a_pass_that_nobody_goes_back_through_is_free_again(training, replay):
    _, model = training
    for _ in range(5):
        model(X)
    assert replay.replayed == 5
    assert len(replay.captured) == 1


def test_a_gradient_is_asked_for_once(training):
    loss = training[1](X).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient of a training pass once; HOOKFLAT_CUDA_GRAPHS=0"):
        loss.backward()
    view, x = attack_view(training[0].eval()), X.clone().requires_grad_()
    for _ in range(cuda_graphs.AFTER + 1):
        logits = once(view)(x)
        torch.autograd.grad(logits.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient of a pass once; HOOKFLAT_CUDA_GRAPHS=0"):
        torch.autograd.grad(logits.sum(), x)


class Shut(nn.ReLU):
    def forward(self, x):
        return 0 * x


def test_what_a_graph_does_not_know_is_not_replayed(training, replay):
    net, model = training
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()  # through the gradient by images
    with torch.no_grad():
        model(X)
    before = net[1].running_mean.clone()
    with statistics_kept(net.modules()):
        model(X).sum().backward()
    assert torch.equal(net[1].running_mean, before)
    handle = net[0].register_forward_hook(lambda *a: None)
    model(X)
    handle.remove()
    net[0].weight.requires_grad_(False)
    model(X).sum().backward()
    net[0].weight.requires_grad_()
    net.eval()
    model(X).sum().backward()
    net.train()
    relu, net[2] = net[2], Shut()  # its settings are those of ReLU
    model(X).sum().backward()
    net[2] = relu
    assert not replay.replayed
    model(X)
    assert replay.replayed


def test_networks_that_draw_or_have_two_heads_are_not_replayed(replay):
    for last in (nn.Dropout(0.5), AuxiliaryHead(nn.Linear(3, 3), nn.Linear(3, 4))):
        model = Replayed(nn.Sequential(network(), last).train())
        for _ in range(cuda_graphs.AFTER + 2):
            model(X).sum().backward()
    assert not replay.captured
    model = Replayed(nn.Sequential(network(), nn.Dropout(0.0)).train())  # draws nothing
    for _ in range(cuda_graphs.AFTER + 2):
        model(X).sum().backward()
    assert replay.captured


def test_training_that_cannot_be_captured_goes_on(replay, monkeypatch):
    def refuses(net, samples, **_):
        net(*samples)  # the statistics have moved by then
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuses)
    attacked = SMALL | {"attack": SMALL["attack"] | {"steps": 0}}
    told = [
        f"no CUDA graph of the {which}, it runs as it is: operation not"
        for which in ("attacked network", "network in training")
    ]
    with pytest.warns(UserWarning, match=told[0]), pytest.warns(UserWarning, match=told[1]):
        trained = _trained(attacked)
    monkeypatch.setattr(cuda_graphs, "possible", lambda device: False)
    assert all(torch.equal(*pair) for pair in zip(trained, _trained(attacked), strict=True))
