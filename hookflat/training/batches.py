"""The order of the training examples, and this process's part of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate.utils import set_seed

from hookflat.functional import seeds
from hookflat.functional.data import Batch, Images

_ON_DEVICE = 4 * 2**30  # bytes of images that are kept on a GPU: CIFAR-10 has 0.15 GiB, ImageNet at 64 pixels 15


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of `size` examples over all `processes`, of which this one has the `rank`-th part."""

    images: Images
    size: int
    seed: int
    rank: int
    processes: int
    device: torch.device

    @cached_property
    def _source(self) -> Images:
        """The images, on the device where they fit there: a step then neither copies nor waits."""
        if self.device.type != "cuda" or self.images.x.nbytes > _ON_DEVICE:
            return self.images
        return Images(self.images.x.to(self.device), self.images.y.to(self.device))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._starts())

    def _starts(self) -> list[int]:
        """Where batches begin in an epoch's order. The last one is left out if it is too small for batch statistics.

        That is less than a quarter of the batch size, or than two examples on every process.
        """
        count = len(self.images)
        enough = max(self.size / 4, 2 * self.processes)
        return [first for first in range(0, count, self.size) if min(self.size, count - first) >= enough]

    def of_epoch(self, epoch: int, done: int = 0) -> Iterator[Batch]:
        """Those of an epoch (from 0), without the first `done`.

        The global generators are seeded for each step, differently on every process.
        """
        order = torch.randperm(len(self.images), generator=seeds.generator(self.seed, "order", epoch))
        order = order.to(self._source.x.device)
        starts = self._starts()
        for number, first in enumerate(starts[done:], start=epoch * len(starts) + done):
            set_seed(seeds.derive_seed(self.seed, "global", self.rank, number) % 2**32)
            members = order[first : first + self.size]
            share = len(members) // self.processes
            index = members[self.rank * share : (self.rank + 1) * share]
            x, y = (t.to(self.device) for t in self._source.__getitems__(index))
            row = torch.arange(self.rank * share, (self.rank + 1) * share, device=self.device)
            index = index.to(self.device)
            labeled = torch.ones_like(y, dtype=torch.bool)
            yield Batch(x, y, y, index, labeled, row, global_size=share * self.processes)
