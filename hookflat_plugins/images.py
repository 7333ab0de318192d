"""Images from files of any usual kind, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from hookflat import Resizing, Share, UserError, check_there, classes_in, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from hookflat import Data, Images, ImageSet, Run

_HINT = "set data.size, and data.channels where the kinds differ"


_SPLITS = (
    " (put the folders of classes under train/ and test/, or name what is there: data.train_split and test_split, "
    "one for both where there is but one to measure on)"
)


@dataclass(eq=False)
class ImageFiles:
    """Labelled images: CIFAR's and SVHN's own archives, npz, parquet, arrow, image folders, or a hub id.

    A folder holds train*.parquet and test*.parquet (or .arrow, .npz), train/ and test/ with a folder for each class, or
    the unpacked archives. Columns are found by their type (an image, a class label). A split in which class comes after
    class, as from folders, is shuffled, always alike: its first images are of all classes. Every image is decoded once
    to uint8 and kept in the cache, HOOKFLAT_CACHE or ~/.cache/hookflat; sets from 1 GiB are mapped into memory. With
    `stream` they are decoded when they are wanted, by processes of their own.
    """

    path: Annotated[str, Field(description="file or folder of images, or a hub id")] = "uoft-cs/cifar10"
    config: Annotated[str | None, Field(description="configuration of a hub id that has several")] = None
    train_split: Annotated[str, Field(description="name of the training split")] = "train"
    test_split: Annotated[str, Field(description="name of the test split")] = "test"
    image: Annotated[str | None, Field(description="column of the images, if there are several")] = None
    label: Annotated[str | None, Field(description="column of the labels, if there are several")] = None
    size: Annotated[int, Field(ge=0, le=4096, description="pixels a side to resize to; 0: as they are")] = 0
    crop: Annotated[Share, Field(description="middle square to take, of the shorter side; 0: squash the whole")] = 0.0
    channels: Annotated[Literal[1, 3] | None, Field(description="make all gray (1) or RGB (3)")] = None
    classes: Annotated[
        Annotated[int, Field(ge=0)] | list[int | str],
        Field(description="how many (0: as the labels say), or a list of those to take, by number or name"),
    ] = 0
    train: Annotated[int, Field(ge=0, description="training images, the first of the split; 0: all")] = 0
    test: Annotated[int, Field(ge=0, description="test images, the first of the split; 0: all")] = 0
    balance: Annotated[bool, Field(description="take the first of each class, as many of each")] = False
    stream: Annotated[bool, Field(description="decode when wanted, for sets that the disk cannot hold decoded")] = False

    def __post_init__(self) -> None:
        if self.crop and not self.size:
            raise ValueError("crop needs a size to resize the middle square to")
        if self.balance and not (self.train or self.test):
            raise ValueError("balance takes as many of each class: set train or test to how many in all")
        self._wanted = self.classes if isinstance(self.classes, list) else []
        if isinstance(self.classes, list) and not 1 < len(set(map(str, self.classes))) == len(self.classes):
            raise ValueError("classes: two or more, each once")

    def known_classes(self) -> int | None:
        """How many classes there are, where that is known without reading images."""
        count = len(self.classes) if isinstance(self.classes, list) else self.classes
        return count or classes_in(self.path, self.train_split, self.label)

    def check_there(self) -> None:
        """Raises UserError where the images are not to be had."""
        check_there(self.path, "data.path")

    @hookimpl
    def build_data(self, run: Run) -> Data:
        import torch

        from hookflat import Data, class_labels, load_sets

        with run.accelerator.main_process_first():  # the others find what the first one made of the files
            sets = load_sets(self.path, (self.train_split, self.test_split), "data.path", self.config, hint=_SPLITS)
        whole = [sets[self.train_split], sets[self.test_split]]
        image, label = (whole[0].column(of, getattr(self, of), f"data.{of}") for of in ("image", "label"))
        for of, column in (("image", image), ("label", label)):
            whole[1].column(of, column, f"data.{of}")  # the test split has them too
        count = self.classes if isinstance(self.classes, int) else 0
        labels, classes, names = class_labels(whole, label, count, "data.classes")
        kept = self._kept(classes, names)
        run.expect_classes(len(kept))
        rows = [self._chosen(*split, kept) for split in zip(whole, labels, (self.train, self.test), strict=True)]
        number = np.full(classes, -1)
        number[kept] = np.arange(len(kept))
        ys = [torch.from_numpy(number[y[r].numpy()]) for y, r in zip(labels, rows, strict=True)]
        train, test = (self._images(p.take(r), y, image, run) for p, y, r in zip(whole, ys, rows, strict=True))
        if train.shape != test.shape:
            raise UserError(
                f"data.path = {self.path!r}: the training images are {_size(train)}, the test images {_size(test)}: "
                "set data.size, or data.channels"
            )
        about = {
            "path": self.path,
            "names": [names[k] for k in kept] if names else None,
            "train": {"split": self.train_split, "of": len(whole[0])} | _which(rows[0]),
            "test": {"split": self.test_split, "of": len(whole[1])} | _which(rows[1]),
        }
        return Data(
            train, test, len(kept), unused=self._unused(whole[0], _there(labels[0], kept), rows[0], image), about=about
        )

    @property
    def _resizing(self) -> Resizing:
        return Resizing(self.size, self.crop, self.channels)

    def _images(self, part: ImageSet, y: Tensor, image: str, run: Run) -> Images:
        from hookflat import Images, streamed

        if self.stream:
            return streamed(part, y, image, self._resizing, _HINT)
        seen = run.console.counting(f"decoding {part.source}", "images", len(part))
        return Images(part.pixels(image, self._resizing, _HINT, seen), y)

    def _kept(self, classes: int, names: list[str] | None) -> list[int]:
        """The classes to take, in the order in which they are numbered from now on."""
        every: list[int | str] = [*range(classes), *(names or [])]
        if strange := [k for k in self._wanted if k not in every]:
            there = ", ".join(names or []) or f"0 to {classes - 1}"
            raise UserError(f"data.classes: {strange[0]!r} is none of the classes of {self.path!r}: {there}")
        kept = [every.index(k) % classes for k in self._wanted] or list(range(classes))
        if len(set(kept)) < len(kept):
            raise UserError("data.classes: a class is there twice, by its number and by its name")
        return kept

    def _chosen(self, part: ImageSet, y: Tensor, examples: int, kept: list[int]) -> np.ndarray:
        """The rows of the first examples of a split, or of each class; of all where none are counted."""
        there = _there(y, kept)
        if examples > len(there):
            raise UserError(
                f"{part.source} has {len(there)} examples{' of these classes' * bool(self._wanted)}, not {examples}"
            )
        if not examples or not self.balance:
            return there[: examples or None]
        each, left = divmod(examples, len(kept))
        if left:
            raise UserError(
                f"{part.source}: {examples} examples do not divide by the {len(kept)} classes (data.balance)"
            )
        rows = [there[y.numpy()[there] == k] for k in kept]
        few = min(range(len(kept)), key=lambda k: len(rows[k]))
        if len(rows[few]) < each:
            raise UserError(
                f"{part.source} has {len(rows[few])} examples of class {kept[few]}, not {each} (data.balance)"
            )
        return there[np.isin(there, np.concatenate([of_class[:each] for of_class in rows]))]

    def _unused(
        self, part: ImageSet, there: np.ndarray, rows: np.ndarray, image: str
    ) -> Callable[[int], Tensor] | None:
        """What decodes training images that are `there` and not trained on, in their order."""
        if len(rows) == len(there) or self.stream:
            return None
        left = there[~np.isin(there, rows)]

        def behind(count: int) -> Tensor:
            return part.take(left[: count or None]).pixels(image, self._resizing, _HINT)

        return behind


def _there(y: Tensor, classes: list[int]) -> np.ndarray:
    """The rows of these classes, in order; in a random one, always the same, where class comes after class."""
    import torch

    rows = np.flatnonzero(np.isin(y.numpy(), classes))
    labels = y.numpy()[rows]
    different = len(np.unique(labels))
    if not 1 < different < len(rows) or np.count_nonzero(np.diff(labels)) >= different:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()]


def _which(rows: np.ndarray) -> dict[str, object]:
    """What is taken of a split, for the run's records."""
    sorted_rows = np.sort(rows)
    return {"rows": _ranges(sorted_rows)} | ({} if np.array_equal(rows, sorted_rows) else {"order": "shuffled"})


def _size(images: Images) -> str:
    return "x".join(map(str, images.shape))


def _ranges(rows: np.ndarray) -> list[list[int]]:
    """Sorted numbers as [first, last] of those that follow each other."""
    ends = np.flatnonzero(np.diff(rows) != 1)
    return [[int(p[0]), int(p[-1])] for p in np.split(rows, ends + 1)]
