"""Images that are read when they are wanted, ahead of the training, in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hookflat import threads
from hookflat.errors import TrainingFailed, UserError
from hookflat.functional.data import StreamedImages
from hookflat.reading.cache import digest
from hookflat.reading.decoding import Resizing
from hookflat.reading.images import ImageSet

_MOST_WORKERS = 16
_LOOKED_AT = 256
"""Images, evenly spread, whose bytes stand for all in a fingerprint."""


@dataclass(frozen=True)
class ImageStream(Dataset):
    """The images of a set, batch by batch: a `hookflat.functional.data.Stream`."""

    images: ImageSet
    column: str
    resizing: Resizing
    hint: str
    shape: tuple[int, int, int]
    """(C, H, W) of every image."""

    def levels(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """(n, C, H, W) uint8 for each batch of rows, in their order; workers read the ones to come.

        Raises UserError for an image that cannot be read when its batch is due, TrainingFailed where a worker ends.
        """
        loader = DataLoader(
            self,
            batch_sampler=[r.tolist() for r in rows],
            num_workers=min(_workers(), max(0, len(rows) - 1)),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # its own: that of the training stays as it is
        )
        try:
            for read in loader:
                if isinstance(read, Exception):
                    raise read
                yield read
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingFailed(f"a process that reads images ended (is /dev/shm too small?): {error}") from error

    def __getitems__(self, rows: list[int]) -> Tensor | Exception:
        """One batch, in a worker; what is wrong with it is told when it is due."""
        try:
            return torch.from_numpy(self.images.read(self.column, rows, self.resizing, self.hint, self.shape))
        except (UserError, OSError) as error:
            return error

    def fingerprint(self, rows: Tensor) -> str:
        """Of some of the images, of all rows, and of how the images are resized."""
        few = rows[torch.linspace(0, len(rows) - 1, _LOOKED_AT, dtype=torch.float64).long().unique()]
        about = [repr(self.resizing).encode(), rows.numpy().tobytes()]
        return digest([*about, *self.images.take(few.numpy()).content(self.column)])


def streamed(images: ImageSet, y: Tensor, column: str, resizing: Resizing, hint: str) -> StreamedImages:
    """A set with its labels (N,), whose images are read when they are wanted; the first tells the size of all.

    Raises UserError where it cannot be decoded; for the others that comes when they are read.
    """
    rows = torch.from_numpy(images.numbers)
    first = images.read(column, rows[:1].tolist(), resizing, hint)
    channels, height, width = first.shape[1:]
    whole = replace(images, chosen=None)
    return StreamedImages(ImageStream(whole, column, resizing, hint, (channels, height, width)), rows, y)


def _workers() -> int:
    """The cores of this machine, shared by the processes of the training on it."""
    return max(1, min(_MOST_WORKERS, threads.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _as_it_is(batch: Any) -> Any:
    return batch
