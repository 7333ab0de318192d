"""Sets of labelled images, from whichever files they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookflat import threads
from hookflat.errors import UserError
from hookflat.reading.archives import read_archive
from hookflat.reading.cache import MAPPED_FROM, digest, kept_array
from hookflat.reading.decoding import Resizing, UnreadableImage
from hookflat.reading.hub import read_sets
from hookflat.reading.rows import ArrayRows, EncodedRows, Rows

_AT_ONCE = 1024
"""Images that are decoded together."""


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, its images not decoded yet; `chosen` are its rows, in order, None all of them."""

    source: str
    rows: Rows
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def take(self, which: Sequence[int] | np.ndarray | range | slice) -> ImageSet:
        """These of its images, in this order."""
        return replace(self, chosen=self.numbers[which if isinstance(which, slice) else np.asarray(which, np.int64)])

    def column(self, of: str, named: str | None, option: str) -> str:
        """The column of the "image" or the "label": the one that is `named`, or the only one that looks like it.

        Raises UserError, naming the `option`, where there are none or several.
        """
        there = self.rows.columns(of="any")
        fit = [named] if named else self.rows.columns(of=of)
        if len(fit) != 1 or fit[0] not in there:
            raise UserError(
                f"{self.source}: set {option} to one of the columns {', '.join(there)} "
                f"(found by type: {', '.join(fit) or 'none'})"
            )
        return fit[0]

    def pixels(
        self, column: str, resizing: Resizing, hint: str, seen: Callable[[int], object] = lambda count: None
    ) -> Tensor:
        """All images: (N, C, H, W) uint8, decoded once and kept in the cache, mapped into memory where they are large.

        `seen` is called with how many are decoded, as the work goes on.
        Raises UserError for the first that cannot be decoded, naming the row, and where they differ in size or kind:
        then with the `hint` what to set.
        """
        if not len(self):
            raise UserError(f"{self.source} has no rows")
        if isinstance(self.rows, ArrayRows) and resizing.keeps:
            pixels = self.rows.arrays.pixels
            pixels = pixels if self.chosen is None else _chosen(pixels, self.chosen)
            pixels = pixels.transpose(0, 3, 1, 2)
            return torch.from_numpy(pixels if pixels.nbytes >= MAPPED_FROM else np.array(pixels, order="C"))
        key = digest([repr(resizing).encode(), *self.content(column)])
        array = kept_array(key, lambda: self._decoded(column, resizing, hint, seen), len(self))
        return torch.from_numpy(array)

    @property
    def numbers(self) -> np.ndarray:
        """Its rows of the split, in order."""
        return np.arange(len(self.rows)) if self.chosen is None else self.chosen

    def _parts(self) -> Iterator[list[int]]:
        for first in range(0, len(self), _AT_ONCE):
            yield self.numbers[first : first + _AT_ONCE].tolist()

    def content(self, column: str) -> Iterator[bytes]:
        """Every image as it is stored, with its length: what the decoded ones depend on."""
        for numbers in self._parts():
            for image in self.rows.images(column, numbers):
                stored = image.tobytes() if isinstance(image, np.ndarray) else image or b""
                yield repr((len(stored), getattr(image, "shape", None))).encode()
                yield stored

    def _decoded(
        self, column: str, resizing: Resizing, hint: str, seen: Callable[[int], object]
    ) -> Iterator[np.ndarray]:
        shape, count = None, 0
        with ThreadPoolExecutor(threads.limit()) as pool:  # Pillow decodes without the interpreter's lock
            for numbers in self._parts():
                part = self.read(column, numbers, resizing, hint, shape, pool.map)
                shape, count = part.shape[1:], count + len(part)
                seen(count)
                yield part

    def read(
        self,
        column: str,
        numbers: Sequence[int],
        resizing: Resizing,
        hint: str,
        shape: tuple[int, ...] | None = None,
        over: Callable[..., Any] = map,
    ) -> np.ndarray:
        """These rows of the split: (n, C, H, W) uint8, each of `shape`, or of that of the first."""

        def pixels(row: int, image: bytes | np.ndarray | None) -> np.ndarray:
            if image is None:
                raise UserError(f"{self.source}: {self.rows.place(column, row)} has no image")
            try:
                return resizing.pixels(image)
            except UnreadableImage as error:
                raise UserError(f"{self.source}: {self.rows.place(column, row)} {error}") from error

        images: list[np.ndarray] = []
        for row, image in zip(numbers, over(pixels, numbers, self.rows.images(column, numbers)), strict=True):
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                raise UserError(
                    f"{self.source} has images of several sizes or kinds: {self.rows.place(column, row)} is "
                    f"{_size(image.shape)}, those before it {_size(shape)}: {hint}"
                )
            images.append(image)
        return np.stack(images)


def _size(shape: tuple[int, ...]) -> str:
    return f"{'gray' if shape[0] == 1 else 'RGB'} of {shape[1]} x {shape[2]} pixels"


def _chosen(pixels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """These rows; where they follow each other, without a copy."""
    if len(chosen) and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
        return pixels[chosen[0] : chosen[0] + len(chosen)]
    return pixels[chosen]


def load_sets(
    path: str, splits: tuple[str, ...], option: str, config: str | None = None, *, hint: str = ""
) -> dict[str, ImageSet]:
    """The splits that are there: of CIFAR's or SVHN's archives, of npz, of Hugging Face datasets (files or a hub id).

    Raises UserError, naming `option`, where one of `splits` is not there; `hint`: what to do then.
    """
    place = Path(path).expanduser()
    source = f"{option} = {path!r}"
    arrays = read_archive(place, splits) if place.exists() else None
    if arrays is not None:
        by_split: dict[str, Rows] = {split: ArrayRows(rows) for split, rows in arrays.items()}
    else:
        by_split = {str(split): EncodedRows(rows) for split, rows in read_sets(path, splits, option, config).items()}
    for split in splits:
        if split not in by_split:
            raise UserError(f"{source} has no split {split!r}, only {', '.join(map(repr, by_split)) or 'none'}{hint}")
    return {split: ImageSet(f"{source}, split {split!r}", by_split[split]) for split in splits}
