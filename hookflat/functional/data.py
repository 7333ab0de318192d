"""Images by the batch: uint8 in memory or mapped from a file, or read when they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hookflat.errors import UserError
from hookflat.functional.brackets import frozen

if TYPE_CHECKING:
    from accelerate import Accelerator


_ON_DEVICE = 4 * 2**30
"""Bytes of images that are kept on a GPU: CIFAR-10 has 0.15 GiB, ImageNet at 64 pixels 15."""

_SAMPLE = 4096
"""Images of a streamed set, evenly spread, whose statistics stand for those of all."""


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Labelled images of one split: `x` (N, C, H, W) uint8, in memory or mapped from a file, `y` (N,) int64."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.dim() != 4 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"Images needs x (N, C, H, W) uint8 and y (N,): got {tuple(self.x.shape)} {self.x.dtype} "
                f"and {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) for `indices` ((n,) int64)."""
        return next(self.batches([indices]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True, eq=False)
class Data:
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
    unused: Callable[[int], Tensor] | None = None
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


@dataclass
class Batch:
    """One process's part of a training batch. Plugins change it in `transform_batch`.

    x: (n, C, H, W) float32 in [0, 1].
    y: (n,) int64, the true labels: what attacks use.
    target: what the loss fits: labels (n,) int64 (the same as `y` at first) or distributions (n, K).
    index: (n,) int64, where the examples stand in the training set; -1 for images from elsewhere.
    labeled: (n,) bool, whether `y` is a true label of the class; False for pseudo-labels and other tasks' labels.
    row: (n,) int64, the position of each example in the global batch, the same however many processes share it.
    global_size: the number of examples in the global batch.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    index: Tensor
    labeled: Tensor
    row: Tensor
    global_size: int

    def interleaved(self, count: int) -> Tensor:
        """(n,) bool: whether an example is one of `count` that are spread evenly over the rows of the global batch."""
        return (self.row + 1) * count // self.global_size > self.row * count // self.global_size

    def parts(self, count: int) -> list[tuple[slice, Batch]]:
        """`count` pieces of nearly one size, each with its place among the n examples; rows stay the global batch's."""
        if count == 1:
            return [(slice(None), self)]
        edges = [len(self.row) * i // count for i in range(count + 1)]
        places = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
        names = ("x", "y", "target", "index", "labeled", "row")
        return [(p, replace(self, **{name: getattr(self, name)[p] for name in names})) for p in places]

    def replace(self, taken: Tensor, x: Tensor, y: Tensor) -> None:
        """Put images (n, C, H, W) from elsewhere, with labels (n,) that may be wrong, where `taken` ((n,) bool)."""
        self.x = torch.where(taken[:, None, None, None], x, self.x)
        self.y = torch.where(taken, y, self.y)
        self.target = torch.where(taken, y, self.target)
        self.index = torch.where(taken, -1, self.index)
        self.labeled = self.labeled & ~taken


class Set(Protocol):
    """Examples to measure on, as the measures see them: in batches, and what the other processes have of them.

    Iterating yields (x, y, key): images (n, C, H, W) in [0, 1], labels (n,), and the position (n,) of each example in
    the whole set, which seeds its random numbers.
    """

    processes: int
    rank: int
    batch_size: int
    """The most examples that go through a network at a time, as far as it is known; 0 where it is not."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]: ...

    def gather(self, values: Tensor) -> Tensor:
        """(N,) values of all examples in their order, from this process's values (in the order of iteration)."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        ...


class Examples(Set):
    """The images of one split; over several processes each takes its share, each example once."""

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int = 250,
        device: torch.device | str = "cpu",
        accelerator: Accelerator | None = None,
    ) -> None:
        self.images, self.batch_size, self.device, self.accelerator = images, batch_size, device, accelerator
        self.rank, self.processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.mine = torch.arange(len(images))[self.rank :: self.processes]

    def __len__(self) -> int:
        """The number of examples over all processes."""
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        batches = self.mine.split(self.batch_size) if len(self.mine) else ()
        for indices, (x, y) in zip(batches, self.images.batches(batches), strict=True):
            yield x.to(self.device), y.to(self.device), indices.to(self.device)

    def gather(self, values: Tensor) -> Tensor:
        """(N,) values of all examples in their order, from this process's values (in the order of iteration)."""
        if self.processes == 1:
            return values
        every = torch.zeros(len(self), dtype=torch.float64, device=values.device)
        every[self.mine.to(values.device)] = values.double()
        return self.sum(every).to(values.dtype)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.accelerator is None or self.processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").to(values.device)


class Pairs(Set):
    """Batches (x, y) from anywhere, the whole set on this process, in the order in which they come."""

    processes, rank, batch_size = 1, 0, 0

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor], model: nn.Module) -> None:
        match loader:
            case (Tensor() as x, Tensor() as y):
                self.batch_size = 250
                check_pairs(x, y)
                self.batches: Iterable[tuple[Tensor, Tensor]] = list(zip(x.split(250), y.split(250), strict=True))
            case _:
                self.batches = loader
        self.model, self.device = model, _device_of(model)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        seen = classes = 0
        for x, y in self.batches:
            check_images(x)
            classes = classes or classes_of(self.model, x)
            check_labels(y, classes)
            check_pairs(x, y)
            keys = torch.arange(seen, seen + len(y), device=self.device)
            yield x.to(self.device), y.to(self.device, torch.int64), keys
            seen += len(y)
        if not seen:
            raise ValueError("no examples to measure on: the loader gave no batch (it must be iterable more than once)")

    def gather(self, values: Tensor) -> Tensor:
        """All there are."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """All there is."""
        return values


Loader = Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | Examples
"""Batches (x, y), one pair of tensors (split into batches of 250), or `Examples`.

Images that are not floats in [0, 1], and labels that are not integers from 0 to the network's outputs minus 1, raise
ValueError.
"""


def set_of(loader: Loader, model: nn.Module) -> Set:
    """What a measure of `model` iterates over, images and labels checked and moved to its device."""
    if not isinstance(loader, Examples):
        return Pairs(loader, model)
    if len(loader):
        check_labels(loader.images.y, classes_of(model, loader.images.__getitems__(torch.tensor([0]))[0]))
    return loader


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many logits `model` has for the first of the images `x`; it is left as found."""
    with frozen(model), torch.no_grad():
        return model(x[:1].to(_device_of(model))).shape[-1]


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def check_pairs(x: Tensor, y: Tensor) -> None:
    """Raises ValueError where there are not as many labels as images."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images have {len(y)} labels")


def check_labels(y: Tensor, classes: int) -> None:
    """Raises ValueError for labels that are not integers (n,) from 0 to `classes` - 1."""
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels should be integers (n,), not {tuple(y.shape)} {y.dtype}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"labels should lie in 0..{classes - 1} for {classes} logits, not in {low}..{high}")


def check_images(x: Tensor) -> None:
    """Raises ValueError for images that are not floats in [0, 1]."""
    if not x.is_floating_point():
        raise ValueError(f"images should be floats in [0, 1], not {x.dtype}")
    low, high = (x.min().item(), x.max().item()) if len(x) else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images should lie in [0, 1], not {low:.3g} to {high:.3g}: put normalisation into the model")
