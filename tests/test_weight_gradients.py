"""Gradients by weights through the folded network, against autograd on the network itself."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hookflat.functional.attack_view import AttackView
from hookflat.functional.brackets import frozen
from hookflat.functional.neighborhood import layers
from hookflat.functional.weight_gradients import WeightGradients


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
