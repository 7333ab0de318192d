"""Images in memory: decoded once to uint8, indexed by the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hookflat.functional.brackets import frozen

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Labelled images of one split: `x` (N, C, H, W) uint8, `y` (N,) int64."""

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

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) for `indices` ((n,) int64)."""
        return self.x[indices].float() / 255, self.y[indices]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index].float() / 255, self.y[index]

    def part(self, start: int, stop: int) -> Images:
        """The examples from `start` to `stop`, in order."""
        return Images(self.x[start:stop], self.y[start:stop])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C,) each, in units of the image range."""
        count = self.x.numel() // self.x.shape[1]
        sums = torch.zeros(2, self.x.shape[1], dtype=torch.float64)
        for chunk in self.x.split(4096):
            values = chunk.double() / 255
            sums += torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
        mean, square = sums / count
        return mean.float(), (square - mean.square()).clamp_min(1e-8).sqrt().float()


@dataclass(frozen=True, eq=False)
class Data:
    """What a data plugin builds: training and test images, and what the test set's labels mean.

    `holdout` are examples, the last of the split `held_from`, that select models; a plugin takes them with `hold_out`.
    `unused(M)`: the first M images (M, C, H, W) uint8 of the training split that are not in `train` (0: all), where
    there are such.
    """

    train: Images
    test: Images
    num_classes: int
    holdout: Images | None = None
    held_from: Literal["test", "train"] = "test"
    unused: Callable[[int], Tensor] | None = None

    def __post_init__(self) -> None:
        for name, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise ValueError(f"the {name} set is empty")
            if not 0 <= int(images.y.min()) <= int(images.y.max()) < self.num_classes:
                raise ValueError(f"the {name} set has labels outside 0..{self.num_classes - 1}")

    @property
    def channels(self) -> int:
        """Of an image: 1 gray, 3 colour."""
        return self.train.x.shape[1]

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
            images = Images(torch.cat([images.x, self.holdout.x]), torch.cat([images.y, self.holdout.y]))
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
        for indices in self.mine.split(self.batch_size) if len(self.mine) else ():
            x, y = self.images.__getitems__(indices)
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
