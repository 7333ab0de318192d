"""Images by the batch: uint8 in memory or mapped from a file, or read when they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hookflat.errors import UserError
from hookflat.functional.shown import Shown

_ON_DEVICE = 4 * 2**30
"""Bytes of images that are kept on a GPU: CIFAR-10 has 0.15 GiB, ImageNet at 64 pixels 15."""

_SAMPLE = 4096
"""Images of a streamed set, evenly spread, whose statistics stand for those of all."""


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU fetches it from pinned memory, while this process goes on."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, eq=False, repr=False)
class Images(Dataset):
    """Labelled images of one split: `x` (N, C, H, W) uint8, in memory or mapped from a file, `y` (N,) int64.

    Labels of shorter integers become int64. Raises ValueError for others, and for images of another shape or type.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if not (isinstance(self.x, Tensor) and isinstance(self.y, Tensor)):
            kinds = f"{type(self.x).__name__} and {type(self.y).__name__}"
            raise ValueError(f"Images takes tensors, not {kinds} (torch.from_numpy makes them of arrays)")
        if self.y.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
            object.__setattr__(self, "y", self.y.long())
        fit = self.x.dim() == 4 and self.y.shape == self.x.shape[:1]
        if not fit or (self.x.dtype, self.y.dtype) != (torch.uint8, torch.int64):
            raise ValueError(
                f"Images needs x (N, C, H, W) uint8 and y (N,) int64: got {tuple(self.x.shape)} {self.x.dtype} "
                f"and {tuple(self.y.shape)} {self.y.dtype}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {'x'.join(map(str, self.shape))})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) for `indices` ((n,) int64)."""
        return next(self.batches([indices]))

    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor]:
        """One image (C, H, W) and its label (), or those of a slice as above."""
        if isinstance(index, slice):
            return self.__getitems__(torch.arange(len(self))[index])
        x, y = self.__getitems__(torch.tensor([index]))
        return x[0], y[0]

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, as above, for each of these batches of indices, in their order."""
        for index, levels in zip(indices, self.levels(indices), strict=True):
            yield levels.float() / 255, self.y[index]

    def levels(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images alone, as they are kept: (n, C, H, W) uint8 for each of these batches of indices."""
        for index in indices:
            yield self.x[index].contiguous()

    def at(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) for `index` (n,), which is where `y` is.

        On the device, where images become floats: a byte a value goes there, and nothing waits.
        """
        levels = next(self.levels([index]))
        return on_device(levels, device).float() / 255, on_device(self.y[index], device)

    def part(self, start: int, stop: int) -> Images:
        """The examples from `start` to `stop`, in order."""
        return Images(self.x[start:stop], self.y[start:stop])

    def on(self, device: torch.device) -> Images:
        """These, on a GPU where they fit there, so that a step neither copies nor waits; else as they are."""
        if device.type != "cuda" or self.x.nbytes > _ON_DEVICE:
            return self
        return Images(self.x.to(device), self.y.to(device))

    def joined(self, other: Images) -> Images:
        """These, and then those of another part of the same set."""
        return Images(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def content(self) -> tuple[str | Tensor, Tensor]:
        """What a fingerprint of these examples is made of."""
        return self.x, self.y

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C,) each, in units of the image range."""
        return self._statistics(torch.arange(len(self)).split(4096))

    def _statistics(self, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        sums, count = torch.zeros(2, self.shape[0], dtype=torch.float64), 0
        for levels in self.levels(batches):
            values = levels.double() / 255
            sums += torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
            count += values[:, 0].numel()
        mean, square = sums / count
        return mean.float(), (square - mean.square()).clamp_min(1e-8).sqrt().float()


class Stream(Protocol):
    """Images that are read when they are wanted."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    def levels(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """(n, C, H, W) uint8 for each of these batches of rows (n,), in their order; the next are read meanwhile."""
        ...

    def fingerprint(self, rows: Tensor) -> str:
        """Equal for equal images, as far as can be told without reading all."""
        ...


class StreamedImages(Images):
    """Images of a set that is too large to be decoded as a whole: they are there by the batch only.

    `rows`: where they stand in the `stream`. Asking for `x` raises UserError.
    """

    stream: Stream
    rows: Tensor

    def __init__(self, stream: Stream, rows: Tensor, y: Tensor) -> None:
        if rows.shape != y.shape:
            raise ValueError(f"StreamedImages needs as many rows as labels, not {len(rows)} and {len(y)}")
        for name, value in (("stream", stream), ("rows", rows), ("y", y)):
            object.__setattr__(self, name, value)

    @property
    def x(self) -> Tensor:
        """There is none."""
        raise UserError("a streamed set has its images by the batch only, and this wants all: set data.stream = false")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.stream.shape

    def levels(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """(n, C, H, W) uint8 for each of these batches of indices; the next are read meanwhile."""
        return self.stream.levels([self.rows[i] for i in indices])

    def part(self, start: int, stop: int) -> Images:
        """The examples from `start` to `stop`, in order."""
        return StreamedImages(self.stream, self.rows[start:stop], self.y[start:stop])

    def on(self, device: torch.device) -> Images:
        """These as they are."""
        return self

    def joined(self, other: Images) -> Images:
        """These, and then those of another part of the same set."""
        assert isinstance(other, StreamedImages)
        return StreamedImages(self.stream, torch.cat([self.rows, other.rows]), torch.cat([self.y, other.y]))

    def content(self) -> tuple[str | Tensor, Tensor]:
        """What a fingerprint of these examples is made of."""
        return self.stream.fingerprint(self.rows), self.y

    def statistics(self) -> tuple[Tensor, Tensor]:
        """As of all images, but of a sample: at most 4096, evenly spread."""
        spread = torch.linspace(0, len(self) - 1, min(len(self), _SAMPLE), dtype=torch.float64)
        return self._statistics(spread.long().split(64))


@dataclass(frozen=True, eq=False, repr=False)
class Data(Shown):
    """What a data plugin builds: training and test images, and what the test set's labels mean.

    `holdout` are examples, the last of the split `held_from`, that select models; a plugin takes them with `hold_out`.
    `unused(M)`: the first M images (M, C, H, W) uint8 of the training split that are not in `train` (0: all), where
    there are such.
    `about`: where they come from and which they are, for the run's records.
    """

    train: Images
    test: Images
    num_classes: int
    holdout: Images | None = None
    held_from: Literal["test", "train"] = "test"
    unused: Callable[[int], Tensor] | None = field(default=None, repr=False)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise ValueError(f"the {name} set is empty")
            if not 0 <= int(images.y.min()) <= int(images.y.max()) < self.num_classes:
                raise ValueError(f"the {name} set has labels outside 0..{self.num_classes - 1}")

    @property
    def channels(self) -> int:
        """Of an image: 1 gray, 3 colour."""
        return self.train.shape[0]

    def hold_out(self, examples: int, source: Literal["test", "train"]) -> Data:
        """Move the last `examples` of a split to `holdout`."""
        images: Images = getattr(self, source)
        left = len(images) - examples
        if left <= 0:
            raise ValueError(f"cannot hold out {examples} of {len(images)} {source} examples")
        kept, held = images.part(0, left), images.part(left, len(images))
        return replace(self, **{source: kept}, holdout=held, held_from=source)

    def taken(self, split: str, examples: int, which: Literal["first", "last"] = "first") -> Images:
        """The first examples of "train", "test" or "holdout", or the last of a split with what is held out of it."""
        images: Images = getattr(self, split)
        if which == "first":
            return images.part(0, examples)
        if self.holdout is not None and self.held_from == split:
            images = images.joined(self.holdout)
        return images.part(max(0, len(images) - examples), len(images))


@dataclass(repr=False)
class Batch(Shown):
    """One process's part of a training batch. Plugins change it in `transform_batch`.

    x: (n, C, H, W) float32 in [0, 1].
    y: (n,) int64, the true labels: what attacks use.
    target: what the loss fits: labels (n,) int64 (the same as `y` at first) or distributions (n, K).
    index: (n,) int64, where the examples stand in the training set; -1 for images from elsewhere.
    labeled: (n,) bool, whether `y` is a true label of the class; False for pseudo-labels and other tasks' labels.
    row: (n,) int64, the position of each example in the global batch, the same however many processes share it.
    global_size: the number of examples in the global batch.
    beside: examples of a plugin's own, which go with these part by part.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    index: Tensor
    labeled: Tensor
    row: Tensor
    global_size: int
    beside: Batch | None = None

    def interleaved(self, count: int) -> Tensor:
        """(n,) bool: whether an example is one of `count` that are spread evenly over the rows of the global batch."""
        return (self.row + 1) * count // self.global_size > self.row * count // self.global_size

    def parts(self, count: int) -> list[tuple[slice, Batch]]:
        """`count` pieces of nearly one size, each with its place among the n examples; rows stay the global batch's."""
        if count == 1:
            return [(slice(None), self)]
        edges = [len(self.row) * i // count for i in range(count + 1)]
        places = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
        beside = [part for _, part in self.beside.parts(count)] if self.beside else [None] * count
        names = ("x", "y", "target", "index", "labeled", "row")
        return [
            (p, replace(self, beside=other, **{name: getattr(self, name)[p] for name in names}))
            for p, other in zip(places, beside, strict=True)
        ]

    def weight(self, processes: int) -> float:
        """By what a run of so many processes multiplies the mean loss of these examples, so that all weigh the same."""
        return len(self.row) * processes / self.global_size

    def replace(self, taken: Tensor, x: Tensor, y: Tensor) -> None:
        """Put images (n, C, H, W) from elsewhere, with labels (n,) that may be wrong, where `taken` ((n,) bool)."""
        self.x = torch.where(taken[:, None, None, None], x, self.x)
        self.y = torch.where(taken, y, self.y)
        self.target = torch.where(taken, y, self.target)
        self.index = torch.where(taken, -1, self.index)
        self.labeled = self.labeled & ~taken
