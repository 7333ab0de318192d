"""Gradients by weights through the folded network, against autograd on the network itself."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hookflat
from hookflat.functional import winograd
from hookflat.functional.attack_view import AttackView, attack_view
from hookflat.functional.brackets import frozen
from hookflat.functional.neighborhood import layers
from hookflat.functional.weight_gradients import WeightGradients
from hookflat.functional.winograd import WinogradConv2d
from hookflat.training.cost import counted


class Untraceable(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
    )
    net = nn.Sequential(net, nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3))
    for _ in range(3):
        net(torch.rand(16, 3, 8, 8))
    return net.eval().double()


@pytest.mark.parametrize("kind", ["folded", "hooked", "untraceable"])
def test_they_are_autograds(kind):
    net = network()
    if kind == "hooked":
        net[0].register_forward_hook(lambda *_: None)
    net = Untraceable(net) if kind == "untraceable" else net
    weights = list(layers(net).values())
    x, y = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    with frozen(net):
        gradients = WeightGradients(net, weights, x)
        assert isinstance(gradients.net, AttackView) == (kind != "hooked")
        assert gradients.net is attack_view(net)
        with torch.no_grad():
            for w in weights:
                w.mul_(1.1)
        gradients.refresh()
        loss, by_weights, by_x = gradients(x.clone(), y, inputs=True)
        without = gradients(x.clone(), y, inputs=False)
        assert not any(p.requires_grad for p in net.parameters())
    x = x.requires_grad_()
    expected = cross_entropy(net(x), y, reduction="sum")
    of_x, *of_weights = torch.autograd.grad(expected, [x, *weights])
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(by_x, of_x)
    assert without[2] is None
    for ours, again, theirs in zip(by_weights, without[1], of_weights, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(again, theirs)


def test_winograds_convolutions_know_the_gradient_by_weights_and_keep_no_transforms_for_it(monkeypatch):
    """And have them again for attacks: both share a view."""
    monkeypatch.setattr(winograd, "CHANNELS", 4)
    monkeypatch.setattr(winograd, "WEIGHT_CHANNELS", 4)
    monkeypatch.setattr(winograd, "WEIGHT_TILES", 1)
    monkeypatch.setattr(winograd, "TILES", 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    net.eval()
    weights = list(layers(net).values())
    x, y = torch.rand(5, 4, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    with frozen(net):
        view = attack_view(net)
        convolution = next(m for m in view.modules() if isinstance(m, WinogradConv2d))
        gradients = WeightGradients(net, weights, x)
        view.forget()
        _, by_weights, by_x = gradients(x.clone(), y, inputs=True)
        assert convolution._transform is None
        view(x)
        assert convolution._transform is not None
    x = x.requires_grad_()
    of_x, *of_weights = torch.autograd.grad(cross_entropy(net(x), y, reduction="sum"), [x, *weights])
    torch.testing.assert_close(by_x, of_x, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(by_weights, of_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_two_images_show_whether_the_folded_network_is_the_network():
    net = network()
    weights = list(layers(net).values())
    with frozen(net), counted() as passes:
        WeightGradients(net, weights, torch.rand(50, 3, 8, 8, dtype=torch.float64))
    assert passes.total == 2


class Sum(nn.Linear):
    """Its weight is the sum of two parameters, to which autograd gives one gradient."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.delta = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight + self.delta, self.bias)


def test_parameters_with_one_gradient_have_tensors_of_their_own():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), Sum(12, 4)).eval(), torch.rand(8, 3, 2, 2), torch.arange(8) % 4
    weights = [model[1].weight, model[1].delta]
    _, gradients, _ = WeightGradients(model, weights, x)(x, y, inputs=False)
    assert gradients[0] is not gradients[1]
    assert torch.equal(*gradients)
    asked = {"sweeps": 3, "attempts": 1, "reference": 0.0, "batch_size": 8, "xi": 0.1}
    pieces = [[(x[i : i + size], y[i : i + size]) for i in range(0, 8, size)] for size in (8, 2)]
    whole, split = (hookflat.worst_flatness(model, loader, **asked).losses[0] for loader in pieces)
    assert split == pytest.approx(whole, rel=1e-6)
