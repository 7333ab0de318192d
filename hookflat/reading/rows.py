"""The rows of a split as its files hold them: encoded images of Hugging Face datasets, or arrays of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hookflat.reading.archives import Arrays


class Rows(Protocol):
    """The rows of a split, as its files hold them."""

    def columns(self, *, of: str) -> list[str]:
        """Those that look like `of` "image" or "label", and, with "any", all."""
        ...

    def __len__(self) -> int: ...

    def images(self, column: str, rows: Sequence[int]) -> list[bytes | np.ndarray | None]:
        """Of these rows, not decoded."""
        ...

    def labels(self, column: str) -> tuple[Any, list[str] | None]:
        """Of all rows, an arrow or numpy array, and the names of the classes."""
        ...

    def place(self, column: str, row: int) -> str:
        """A row as a user finds it."""
        ...


@dataclass(frozen=True)
class EncodedRows:
    """Of Hugging Face datasets: image files, in the rows or beside them."""

    split: Any

    def columns(self, *, of: str) -> list[str]:
        """Those that look like an "image" or a "label", or "any"."""
        from datasets import ClassLabel, Image, Value

        features = self.split.features
        if of == "any":
            return list(features)
        if of == "image":
            return [n for n, f in features.items() if isinstance(f, Image)]
        classes = [n for n, f in features.items() if isinstance(f, ClassLabel)]
        return classes or [n for n, f in features.items() if isinstance(f, Value) and f.dtype.startswith("int")]

    def __len__(self) -> int:
        return len(self.split)

    def images(self, column: str, rows: Sequence[int]) -> list[bytes | np.ndarray | None]:
        """Of these rows, not decoded."""
        return [_file(value) for value in self._stored(column)[list(rows)][column]]

    def _stored(self, column: str) -> Any:
        from datasets import Image

        alone = self.split.select_columns([column])
        return alone.cast_column(column, Image(decode=False)).with_format(None)

    def labels(self, column: str) -> tuple[Any, list[str] | None]:
        """Of all rows, and the names of their classes."""
        values = self.split.select_columns([column]).with_format("arrow")[:][column]
        return values, getattr(self.split.features[column], "names", None)

    def place(self, column: str, row: int) -> str:
        """A row as a user finds it."""
        value = self._stored(column)[row][column]
        path = value.get("path") if isinstance(value, dict) else None
        return f"row {row}" + (f" ({path})" if path else "")


def _file(value: Any) -> bytes | None:
    """The bytes of an image file."""
    if value is None or isinstance(value, bytes):
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    return Path(value["path"]).read_bytes() if value["path"] else None


@dataclass(frozen=True)
class ArrayRows:
    """Of archives: arrays of pixels."""

    arrays: Arrays

    def columns(self, *, of: str) -> list[str]:
        """Those that look like an "image" or a "label", or "any"."""
        labels = list(self.arrays.labels)
        return {"image": ["image"], "label": labels, "any": ["image", *labels]}[of]

    def __len__(self) -> int:
        return len(self.arrays.pixels)

    def images(self, column: str, rows: Sequence[int]) -> list[bytes | np.ndarray | None]:
        """Of these rows, not decoded."""
        return list(self.arrays.pixels[list(rows)])

    def labels(self, column: str) -> tuple[Any, list[str] | None]:
        """Of all rows, and the names of their classes."""
        return self.arrays.labels[column], self.arrays.names.get(column)

    def place(self, column: str, row: int) -> str:
        """A row as a user finds it."""
        return f"row {row} of {self.arrays.file}"
