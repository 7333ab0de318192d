"""Networks of another scale are the same function."""

import copy

import pytest
import timm
import torch
from torch import nn

import hookflat
from hookflat.functional.layers import Normalized
from hookflat.functional.networks import small_image_resnet


def trained_statistics(net):
    net.train()
    for seed in range(3):
        net(torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return net.eval()


NETWORKS = {
    "rebn": lambda: small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="rebn", act="relu"),
    "batch, mish": lambda: small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="batch", act="mish"),
    "timm": lambda: timm.create_model("resnet10t", in_chans=1, num_classes=10),
    "normalised": lambda: Normalized(
        small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="rebn", act="relu"),
        torch.tensor([0.3]),
        torch.tensor([0.2]),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_rescaled_network_is_the_same_function(name, factor):
    torch.manual_seed(0)
    net = trained_statistics(NETWORKS[name]())
    scaled = copy.deepcopy(net)
    count = hookflat.rescale(scaled, factor)
    assert count >= 9
    x = torch.rand(8, 1, 16, 16)
    assert torch.allclose(scaled(x), net(x), rtol=1e-4, atol=1e-4)
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, scaled.state_dict()[k])]
    assert sum(k.endswith("weight") and net.state_dict()[k].dim() == 4 for k in changed) == count


def test_what_cannot_be_rescaled_is_told():
    with pytest.raises(ValueError, match="nothing to rescale"):
        hookflat.rescale(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2.0)
    for factor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="should be positive"):
            hookflat.rescale(NETWORKS["rebn"](), factor)


def test_adaptive_sharpness_does_not_see_the_scale_of_a_network_whose_convolutions_have_biases(digits_net, digits_pair):
    """Andriushchenko et al. (2023): with T = |w| for every tensor the measure is a function of the function alone."""
    options = {"rho": 0.5, "robust": False}
    copied = copy.deepcopy(digits_net)
    for factor in (0.1, 10):
        scaled = copy.deepcopy(digits_net)
        hookflat.rescale(scaled, factor)
        sharp, plain = (hookflat.sharpness(scaled, digits_pair, adaptive=a, **options).sharpness for a in (True, False))
        assert sharp == pytest.approx(
            hookflat.sharpness(copied, digits_pair, adaptive=True, **options).sharpness, rel=1e-3
        )
        assert plain != pytest.approx(hookflat.sharpness(copied, digits_pair, **options).sharpness, rel=0.1)


@pytest.mark.parametrize("factor", [1e-320, 1e-36, 1e-20, 1e20, 1e39, 1e200, float("inf"), float("nan"), 0.0, -1.0])
def test_a_factor_that_leaves_the_range_of_float32_is_refused_and_changes_nothing(factor):
    net = trained_statistics(NETWORKS["rebn"]())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"takes weights out of the range of torch.float32|should be positive"):
        hookflat.rescale(net, factor)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_far_factors_inside_the_range_are_the_same_function(factor):
    net = trained_statistics(NETWORKS["batch, mish"]())
    scaled = copy.deepcopy(net)
    hookflat.rescale(scaled, factor)
    x = torch.rand(4, 1, 16, 16)
    assert torch.allclose(scaled(x), net(x), rtol=1e-3, atol=1e-3)
