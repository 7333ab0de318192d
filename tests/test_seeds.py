import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hookflat.functional import seeds
from hookflat.functional.seeds import groups_of_normals_like, normals_like


def test_uniform_and_normal_draws_follow_their_distributions():
    keys = torch.arange(400)
    uniform = seeds.uniform(keys, (250,), seed=3).flatten().numpy()
    normal = seeds.normal(keys, (250,), seed=3).flatten().numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3


def test_draws_of_neighbouring_keys_positions_and_seeds_are_uncorrelated():
    a = seeds.normal(torch.arange(1000), (100,), seed=0).numpy()
    other_seed = seeds.normal(torch.arange(1000), (100,), seed=1).numpy()
    for x, y in ((a[:-1], a[1:]), (a[:, :-1], a[:, 1:]), (a, other_seed)):
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 4 / np.sqrt(x.size)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(0, 2**63 - 1))
def test_an_examples_numbers_depend_on_its_key_alone(keys, seed):
    together = seeds.uniform(torch.tensor(keys), (2, 3), seed)
    alone = torch.cat([seeds.uniform(torch.tensor([k]), (2, 3), seed) for k in keys])
    assert torch.equal(together, alone)
    assert 0 <= together.min() <= together.max() < 1


def test_seeds_depend_on_every_part_and_on_their_order():
    derived = {seeds.derive_seed(*parts) for parts in [(0, "a"), (1, "a"), (0, "b"), ("a", 0), (0, "a", 0), ("0", "a")]}
    assert len(derived) == 6
    assert all(0 <= s < 2**63 for s in derived)


def test_generators_repeat():
    draws = [torch.randn(5, generator=seeds.generator(7, "x", 3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_weights_are_drawn_in_place_alike_everywhere_and_normally():
    """The draws of a tensor depend on the generator and on its place in the list, not on type, layout or neighbours."""
    shapes = [torch.empty(301, 7), torch.empty(8, 3, 3, 3), torch.empty(5)]
    draws = normals_like(shapes, torch.Generator().manual_seed(3))
    assert [d.shape for d in draws] == [s.shape for s in shapes]
    again = normals_like([s.double() for s in shapes], torch.Generator().manual_seed(3))
    assert all(torch.equal(a.float(), d) for a, d in zip(again, draws, strict=True))
    assert torch.equal(normals_like(shapes[:1], torch.Generator().manual_seed(3))[0], draws[0])
    groups = list(groups_of_normals_like([*shapes, *shapes], torch.Generator().manual_seed(3)))
    assert [len(group) for group in groups] == [1, 2, 1, 2]  # as many numbers as the largest has, or fewer
    whole = normals_like([*shapes, *shapes], torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip([d for group in groups for d in group], whole, strict=True))
    generator = torch.Generator().manual_seed(3)
    first, second = normals_like(shapes, generator), normals_like(shapes, generator)
    assert not torch.equal(first[2], second[2])
    many = normals_like([torch.empty(200_001)] * 2, torch.Generator().manual_seed(0))
    assert stats.kstest(many[0].numpy(), "norm").pvalue > 1e-3
    half = len(many[0]) // 2
    for a, b in ((many[0], many[1]), (many[0][:half], many[0][half : 2 * half])):  # tensors; cosines and sines
        assert abs(np.corrcoef(a.numpy(), b.numpy())[0, 1]) < 0.01
        assert abs(np.corrcoef(a.square().numpy(), b.square().numpy())[0, 1]) < 0.01
