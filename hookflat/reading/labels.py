"""Labels of anyone's data sets, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookflat.errors import UserError
from hookflat.reading.images import ImageSet

_SPARSE = 100
"""Classes from which on most of them must have an example."""


def class_labels(
    sets: Sequence[ImageSet], column: str, classes: int, option: str
) -> tuple[list[Tensor], int, list[str] | None]:
    """(N,) int64 labels of each set, from 0 to K - 1; K; and the names of the classes where the data have them.

    K is `classes`, or where that is 0 the number of names, or else the largest label and one. Raises UserError,
    naming the row, for labels that are missing, no whole numbers or out of range, and naming the `option` for classes
    where the largest label is far off.
    """
    read = [_whole(part, column) for part in sets]
    names = sets[0].rows.labels(column)[1]
    for part in sets[1:]:
        if part.rows.labels(column)[1] != names:
            raise UserError(
                f"{part.source}: the classes of {column!r} are named otherwise than those of {sets[0].source}"
            )
    known = classes or (len(names) if names else 0)
    count = known or 1 + max(int(y.max()) for y in read)
    for part, y in zip(sets, read, strict=True):
        wrong = np.flatnonzero((y < 0) | (y >= count))
        if len(wrong):
            label, row = int(y[wrong[0]]), _row(part, int(wrong[0]))
            meant = "no label" if label == -1 else f"outside the {count} classes" if label >= 0 else "negative"
            raise UserError(f"{part.source}: row {row} has the label {label} in {column!r}: {meant}")
    if not known:
        _check_far_off(sets, read, column, count, option)
    if count < 2:
        raise UserError(f"{sets[0].source}: {column!r} has one class alone, and a network tells two or more apart")
    names = names if names and len(names) == count else None
    return [torch.from_numpy(y.copy()) for y in read], count, names


def _check_far_off(sets: Sequence[ImageSet], read: list[np.ndarray], column: str, count: int, option: str) -> None:
    there = len(np.unique(np.concatenate(read)))
    if count > max(_SPARSE, 2 * there):
        part, y = max(zip(sets, read, strict=True), key=lambda pair: int(pair[1].max()))
        raise UserError(
            f"{part.source}: row {_row(part, int(y.argmax()))} has the label {count - 1} in {column!r}, but there are "
            f"only {there} different ones: number the classes from 0, or set {option} to how many there are"
        )


def _row(part: ImageSet, position: int) -> int:
    return position if part.chosen is None else int(part.chosen[position])


def _whole(part: ImageSet, column: str) -> np.ndarray:
    """Labels as int64."""
    if not len(part):
        raise UserError(f"{part.source} has no rows")
    values: Any = part.rows.labels(column)[0]
    missing = _missing(values)
    if part.chosen is not None:
        values, missing = values.take(part.chosen), missing[part.chosen]
    if missing.any():
        raise UserError(f"{part.source}: row {_row(part, int(missing.argmax()))} has no label in {column!r}")
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise UserError(
            f"{part.source}: labels are whole numbers from 0, but {column!r} holds {array.dtype} such as "
            f"{str(array[0])[:40]!r}: number them first (class_encode_column of datasets does)"
        )
    off = (array != np.floor(array)) | (np.abs(array) >= 2**62) if array.dtype.kind == "f" else array > 2**62
    if off.any():
        row = int(off.argmax())
        raise UserError(f"{part.source}: row {_row(part, row)} has the label {array[row]} in {column!r}: no class")
    return array.astype(np.int64)


def _missing(values: Any) -> np.ndarray:
    """(N,) bool, of an arrow or numpy array."""
    if isinstance(values, np.ndarray):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    return values.is_null().to_numpy() if not values.type.equals("null") else np.ones(len(values), bool)
