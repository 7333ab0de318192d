import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hookflat.functional import seeds


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
