"""What measures iterate over: the images of a split on several processes, or anyone's batches, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from hookflat.functional.brackets import frozen
from hookflat.functional.data import Images
from hookflat.functional.layers import device_of

_SHUFFLING = RandomSampler, SubsetRandomSampler, WeightedRandomSampler

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    """The images of one split; over several processes each takes its share, each example once.

    `device`: where they are wanted; where none is named, the accelerator's or, in a measure, that of its network.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int = 250,
        device: torch.device | str | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.images, self.batch_size, self.accelerator = images, batch_size, accelerator
        self.device = accelerator.device if device is None and accelerator else device
        self.rank, self.processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.mine = torch.arange(len(images))[self.rank :: self.processes]

    def __len__(self) -> int:
        """The number of examples over all processes."""
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        batches = self.mine.split(evenly(len(self.mine), self.batch_size)) if len(self.mine) else ()
        for indices, (x, y) in zip(batches, self.images.batches(batches), strict=True):
            device = self.device or x.device
            yield x.to(device), y.to(device), indices.to(device)

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


def check_order(loader: object) -> None:
    """Raises ValueError for a loader that shuffles: numbers of examples by position would be those of others."""
    if isinstance(getattr(loader, "sampler", None), _SHUFFLING):
        raise ValueError("`clean` is of examples in their order, which this loader shuffles: use shuffle=False")


class Pairs(Set):
    """Batches (x, y) from anywhere, the whole set on this process, in the order in which they come."""

    processes, rank, batch_size = 1, 0, 0

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor], model: nn.Module) -> None:
        match loader:
            case (Tensor() as x, Tensor() as y):
                self.batch_size = 250
                check_pairs(x, y)
                size = evenly(len(x), self.batch_size)
                self.batches: Iterable[tuple[Tensor, Tensor]] = list(zip(x.split(size), y.split(size), strict=True))
            case _:
                self.batches = loader
        self.model, self.device = model, device_of(model)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        seen = classes = 0
        for x, y in map(_pair, self.batches):
            check_images(x, self.model)
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


Loader = Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | Images | Examples
"""Batches (x, y), one pair of tensors or `Images` (split into batches of 250 at most), or `Examples`.

Images that are not floats in [0, 1], and labels that are not integers from 0 to the network's outputs minus 1, raise
ValueError.
"""


def repeatable(loader: Loader) -> Loader:
    """The same examples at every pass: those of a loader, which may shuffle, are held."""
    return loader if isinstance(loader, tuple | Images | Examples) else list(loader)


def set_of(loader: Loader, model: nn.Module) -> Set:
    """What a measure of `model` iterates over, images and labels checked and moved to its device."""
    if isinstance(loader, Images):
        loader = Examples(loader)
    if not isinstance(loader, Examples):
        return Pairs(loader, model)
    if len(loader):
        check_labels(loader.images.y, classes_of(model, loader.images.__getitems__(torch.tensor([0]))[0]))
    if loader.device is None:
        return Examples(loader.images, batch_size=loader.batch_size, device=device_of(model))
    return loader


def evenly(count: int, most: int) -> int:
    """How many examples a batch has where none has more than `most` and no last one is left small."""
    return math.ceil(count / max(1, math.ceil(count / most))) or most


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many logits `model` has for the first of the images `x`; it is left as found."""
    with frozen(model), torch.no_grad():
        logits = model(x[:1].to(device_of(model)))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = f" {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise ValueError(f"a network gives logits (n, K), not {type(logits).__name__}{shape}: wrap it in one that does")
    return logits.shape[1]


def _pair(batch: object) -> tuple[Tensor, Tensor]:
    """Raises ValueError for a batch that is no pair of tensors, or a single example."""
    match batch:
        case (Tensor(), Tensor(ndim=0)):
            raise ValueError("expected batches (x, y), not single examples: put the data set into a DataLoader")
        case (Tensor() as x, Tensor() as y):
            return x, y
    held = f" of {len(batch)}" if isinstance(batch, tuple | list | dict) else ""
    raise ValueError(f"expected batches (x, y) of images and labels, two tensors, not {type(batch).__name__}{held}")


def check_pairs(x: Tensor, y: Tensor) -> None:
    """Raises ValueError where there are not as many labels as images."""
    if y.dim() == 0:
        raise ValueError(f"images and labels should be batches, (n, C, H, W) and (n,), not {tuple(x.shape)} and ()")
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images have {len(y)} labels")


def check_labels(y: Tensor, classes: int) -> None:
    """Raises ValueError for labels that are not integers (n,) from 0 to `classes` - 1."""
    if classes < 2:
        raise ValueError(
            f"a network gives a logit for each of two classes or more, (n, K), not (n, {classes}): of a single logit "
            "z, torch.cat([-z, z], 1) / 2 are two that say the same"
        )
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels should be integers (n,), not {tuple(y.shape)} {y.dtype}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"labels should lie in 0..{classes - 1} for {classes} logits, not in {low}..{high}")


def check_images(x: Tensor, model: nn.Module) -> None:
    """Raises ValueError for images that are not floats in [0, 1], or in double precision as nothing of `model`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"images should be a tensor (n, C, H, W) of floats in [0, 1], not {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"images should be floats in [0, 1], not {x.dtype}")
    dtypes = {p.dtype for p in model.parameters()}
    if x.dtype == torch.float64 and dtypes and torch.float64 not in dtypes:
        raise ValueError(f"images are float64, the network {', '.join(map(str, dtypes))}: give it images.float()")
    low, high = (x.min().item(), x.max().item()) if len(x) else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        rounded = low > -1e-3 and high < 1 + 1e-3
        what = "clamp them" if rounded else "put normalisation into the model"
        raise ValueError(f"images should lie in [0, 1], not {low:.9g} to {high:.9g}: {what}")
