"""A run's batches: their order, what is on its way ahead of a step, and going on in the middle of an epoch."""

import pytest
import torch

from hookflat import Images
from hookflat.functional import data
from hookflat.functional.data import on_device
from hookflat.training.batches import Batches, one_ahead

CPU = torch.device("cpu")


@pytest.fixture
def images():
    x = torch.randint(0, 256, (22, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(22) % 3)


def seen(batches, *place):
    """Each batch of an epoch, and the first draw of its step."""
    return [(batch, torch.rand(1)) for batch in batches.of_epoch(*place)]


def test_one_is_asked_for_ahead_of_each_and_their_order_stays():
    told = []
    for item in one_ahead(told.append(i) or i for i in range(3)):
        told.append(f"use {item}")
    assert told == [0, 1, "use 0", 2, "use 1", "use 2"]
    assert list(one_ahead([])) == []


def test_images_are_a_255th_of_what_is_kept(images):
    batches = Batches(images, 5, 0, 0, 1, CPU)
    parts = [batch for batch, _ in seen(batches, 1)]
    assert sorted(torch.cat([b.index for b in parts]).tolist()) == list(range(22))
    for batch in parts:
        assert torch.equal(batch.x, images.x[batch.index].float() / 255)
        assert torch.equal(batch.y, images.y[batch.index])
        assert torch.equal(batches.images_at(batch.index), batch.x)


@pytest.mark.parametrize("done", [1, 3, 5])
def test_an_epoch_goes_on_where_it_stopped_with_the_same_draws(images, done):
    batches = Batches(images, 5, 0, 0, 1, CPU)
    whole, rest = seen(batches, 2), seen(batches, 2, done)
    assert len(rest) == len(whole) - done
    for (batch, draw), (same, same_draw) in zip(whole[done:], rest, strict=True):
        assert torch.equal(batch.x, same.x)
        assert torch.equal(batch.index, same.index)
        assert torch.equal(draw, same_draw)


def test_images_of_another_set_are_sent_as_bytes(images, monkeypatch):
    sent = []
    monkeypatch.setattr(data, "on_device", lambda tensor, device: sent.append(tensor.dtype) or tensor)
    index = torch.tensor([3, 3, 0])
    x, y = images.at(index, CPU)
    assert sent == [torch.uint8, torch.int64]
    assert torch.equal(x, images.x[index].float() / 255)
    assert torch.equal(y, images.y[index])


def test_what_is_where_it_should_be_is_not_copied(images):
    assert on_device(images.x, CPU) is images.x
