import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hookflat
from hookflat.functional import seeds
from hookflat.functional.layers import AuxiliaryHead
from hookflat.functional.neighborhood import each_on_sphere, layers, moved, project, scaled_to, sphere
from hookflat.functional.networks import small_image_resnet
from hookflat.testing import Found


def papers_network():
    return small_image_resnet(width=64, blocks=2, channels=3, classes=10, norm="rebn", act="relu")


def test_the_papers_resnet18_has_the_papers_tensors():
    """Protocol 1.5 and 3: 26 of 66 tensors, 11,165,322 of 11,174,922 parameters; 5 of the 26 are biases."""
    net = papers_network()
    assert sum(p.numel() for p in net.parameters()) == 11_174_922
    assert len(list(net.parameters())) == 66
    chosen = layers(net)
    assert sum(p.numel() for p in chosen.values()) == 11_165_322
    assert len(chosen) == 26
    assert sum(p.dim() == 1 for p in chosen.values()) == 5
    assert len(layers(net, biases=False)) == 21


@pytest.mark.parametrize("filters", [False, True])
def test_a_perturbation_in_groups_is_the_whole_one_and_is_not_held(filters):
    torch.manual_seed(0)
    weights = list(layers(small_image_resnet(8, 1, 3, 5, "batch", "relu")).values())
    whole = sphere(weights, 0.3, seeds.generator(1, "here"), filters=filters)
    alive, largest = [], max(w.numel() for w in weights)
    assert 2 * largest < sum(w.numel() for w in weights)

    def watched():
        for nu in each_on_sphere(weights, 0.3, seeds.generator(1, "here"), filters=filters):
            alive.append(weakref.ref(nu))
            assert sum(there.numel() for ref in alive if (there := ref()) is not None) <= 2 * largest  # and the last
            yield nu

    before = [w.detach().clone() for w in weights]
    with moved(weights, watched()):
        assert len(alive) == len(weights)
        assert all(torch.equal(w, b + nu) for w, b, nu in zip(weights, before, whole, strict=True))
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_flatness_tells_of_weights_that_it_does_not_move(recwarn):
    class Own(nn.Module):
        def __init__(self, units):
            super().__init__()
            self.w = nn.Parameter(torch.rand(units, 4))
            self.last = nn.Linear(units, 3)

        def forward(self, x):
            return self.last(x.flatten(1) @ self.w.T)

    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    options = {"xi": 0.1, "samples": 1, "steps": 1, "reference_restarts": 1}
    with pytest.warns(UserWarning, match=r"stay as they are: w, 54% of the parameters"):
        hookflat.average_flatness(Own(8), (x, y), **options)
    recwarn.clear()
    hookflat.average_flatness(papers_network(), (torch.rand(2, 3, 32, 32), y[:2]), **options)
    with_a_head = nn.Sequential(nn.Flatten(), AuxiliaryHead(nn.Linear(4, 3), nn.Linear(4, 50)))
    hookflat.average_flatness(with_a_head, (x, y), **options)
    assert not recwarn.list


def test_normalisation_layers_and_frozen_parameters_stay_out():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.LayerNorm(2), nn.Linear(2, 2)
    )
    assert list(layers(net)) == ["0.weight", "0.bias", "5.weight", "5.bias"]
    net[0].requires_grad_(False)
    assert list(layers(net, biases=False)) == ["5.weight"]
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no weights to perturb"):
        layers(net)


@settings(max_examples=30, deadline=None)
@given(xi=st.just(0.0) | st.floats(1e-9, 10), seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_sphere_samples_have_the_relative_norm_in_every_layer(xi, seed, scale):
    torch.manual_seed(seed)
    weights = [scale * torch.randn(4, 3, 3, 3), torch.randn(7), torch.zeros(5)]
    nu = sphere(weights, xi, seeds.generator(seed))
    for n, w in zip(nu, weights, strict=True):
        assert float(n.norm()) == pytest.approx(xi * float(w.norm()), rel=1e-5, abs=1e-30)
    assert not nu[2].any()


def test_sphere_directions_are_isotropic():
    draws = torch.stack([sphere([torch.ones(3)], 1.0, seeds.generator(i))[0] for i in range(4000)])
    assert draws.mean(0).abs().max() < 0.1
    assert torch.allclose(draws.T @ draws / 4000, torch.eye(3), atol=0.08)  # E nu nu^T = |w|^2 / 3 I = I


@settings(max_examples=30, deadline=None)
@given(xi=st.floats(1e-3, 2), length=st.floats(0, 5), seed=st.integers(0, 1000))
def test_projection_is_the_nearest_point_of_the_ball(xi, length, seed):
    torch.manual_seed(seed)
    w = torch.randn(6)
    nu = torch.randn(6)
    nu = length * nu / nu.norm()
    (projected,) = project([nu], [w], xi)
    radius = xi * w.norm()
    expected = nu if nu.norm() <= radius else nu * (radius / nu.norm())
    assert torch.allclose(projected, expected, rtol=1e-5, atol=1e-7)


def test_a_zero_direction_stays_put():
    (nu,) = scaled_to([torch.zeros(3)], [torch.ones(3)], 0.5)
    assert not nu.any()


def test_weights_come_back_bit_for_bit_also_after_an_exception():
    net = papers_network()
    weights = list(layers(net).values())
    nu = sphere(weights, 0.5, seeds.generator(0))
    before = Found.of(net)

    def fails():
        with moved(weights, nu):
            assert not torch.equal(weights[0], before.tensors[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    before.assert_unchanged(net)


def test_shared_weights_move_once_and_half_precision_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    assert list(layers(net)) == ["0.weight", "0.bias", "2.bias"]
    with pytest.raises(ValueError, match=r"half precision .* \(0\.weight\): use model\.float\(\)"):
        layers(net.bfloat16())
