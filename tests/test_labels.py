"""Labels that a network has no logit for: one ValueError, from every function that takes labels."""

import pytest
import torch
from torch import nn

import hookflat
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples

FUNCTIONS = {
    "pgd": lambda net, x, y: hookflat.pgd(net, x, y, steps=1),
    "apgd": lambda net, x, y: hookflat.apgd(net, x, y, steps=1),
    "pgd_tau": lambda net, x, y: hookflat.pgd_tau(net, x, y, tau=1, steps=1),
    "pgd_tau of an objective": lambda net, x, y: hookflat.pgd_tau(
        net, x, y, tau=1, objective=lambda model, x_adv: model(x_adv).sum(dim=1)
    ),
    "cross_entropy": lambda net, x, y: hookflat.cross_entropy(net(x), y),
}
MEASURES = {
    name: getattr(hookflat, name)
    for name in (
        *("robust_loss", "robust_error", "autoattack", "average_flatness", "worst_flatness", "hessian_eigenvalues"),
        *("hessian_trace", "sharpness", "relative_flatness", "landscape", "landscape_2d", "hessian_density", "trust"),
        *("average_sharpness", "worst_sharpness", "flatness_along_attack", "margins", "input_gradients"),
        *("local_lipschitz", "boundary_thickness"),
    )
}
KNOWN = {"average_flatness": {"reference": 1.0}, "worst_flatness": {"reference": 1.0}}  # nothing is measured before


def measured(name, x, y, net, how):
    loader = {"pair": (x, y), "loader": [(x, y)]}.get(how) or Examples(Images((255 * x).byte(), y))
    return MEASURES[name](net, loader, **KNOWN.get(name, {}))


FUNCTIONS |= {
    f"{name} of a {how}": lambda net, x, y, name=name, how=how: measured(name, x, y, net, how)
    for name in MEASURES
    for how in ("pair", "loader", "examples")
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return body.eval()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels_outside_the_classes_raise_the_same_error(name, net):
    x = torch.rand(4, 1, 4, 4)
    for strange in (3, 10**6, -1, -100):
        low, high = min(0, strange), max(2, strange)
        told = rf"labels should lie in 0\.\.2 for 3 logits, not in {low}\.\.{high}"
        with pytest.raises(ValueError, match=told):
            FUNCTIONS[name](net, x, torch.tensor([0, 1, 2, strange]))


@pytest.mark.parametrize("name", ["pgd", "robust_loss of a pair", "robust_error of a loader"])
def test_labels_that_are_none(name, net):
    x = torch.rand(4, 1, 4, 4)
    with pytest.raises(ValueError, match=r"labels should be integers \(n,\), not \(4,\) torch.float32"):
        FUNCTIONS[name](net, x, torch.ones(4))
    with pytest.raises(ValueError, match="4 images have 3 labels"):
        FUNCTIONS[name](net, x, torch.tensor([0, 1, 2]))


def test_looking_at_labels_leaves_the_network_as_found(net):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hookflat.robust_error(net, (torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])), steps=1, restarts=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    net.eval()


def test_integers_of_other_types_are_labels(net):
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    for dtype in (torch.int32, torch.uint8):
        assert (
            hookflat.robust_loss(net, (x, y.to(dtype)), steps=1).loss == hookflat.robust_loss(net, (x, y), steps=1).loss
        )
        assert torch.equal(hookflat.pgd(net, x, y.to(dtype), steps=1), hookflat.pgd(net, x, y, steps=1))
