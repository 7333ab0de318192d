"""The order of the training examples, and this process's part of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from hookflat.functional import seeds
from hookflat.functional.data import Batch, Images, on_device

T = TypeVar("T")


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same, each asked for before the one ahead of it is handed out: what it sets going is under way by then."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


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
        return self.images.on(self.device)

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

    def sizes(self) -> list[int]:
        """Of the batches of an epoch, over all processes."""
        count, shared = len(self.images), self.processes
        return [min(self.size, count - first) // shared * shared for first in self._starts()]

    def of_epoch(self, epoch: int, done: int = 0) -> Iterator[Batch]:
        """Those of an epoch (from 0), without the first `done`.

        The global generators are seeded for each step, differently on every process.
        """
        from accelerate.utils import set_seed

        order = torch.randperm(len(self.images), generator=seeds.generator(self.seed, "order", epoch))
        order = order.to(self._source.y.device)
        starts = self._starts()
        mine = [self._mine(order[first : first + self.size]) for first in starts[done:]]
        for number, parts in enumerate(one_ahead(self._staged(mine)), start=epoch * len(starts) + done):
            set_seed(seeds.derive_seed(self.seed, "global", self.rank, number) % 2**32)
            yield self._batch(*parts)

    def _staged(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images as they are kept, labels and indices of each batch, on their way to the device: a byte a value."""
        source, device = self._source, self.device
        for index, levels in zip(indices, source.levels(indices), strict=True):
            yield on_device(levels, device), on_device(source.y[index], device), on_device(index, device)

    def images_at(self, index: Tensor) -> Tensor:
        """Images (n, C, H, W) on the device; where they all live there, without a wait."""
        return self._source.at(index.to(self._source.y.device), self.device)[0]

    def _batch(self, levels: Tensor, y: Tensor, index: Tensor) -> Batch:
        share = len(index)
        row = torch.arange(self.rank * share, (self.rank + 1) * share, device=self.device)
        labeled = torch.ones_like(y, dtype=torch.bool)
        return Batch(levels.float() / 255, y, y, index, labeled, row, global_size=share * self.processes)

    def _mine(self, members: Tensor) -> Tensor:
        """This process's part of a batch."""
        share = len(members) // self.processes
        return members[self.rank * share : (self.rank + 1) * share]
