"""Data sets in files of their own: CIFAR's and SVHN's archives, npz, and the pickles of extra images.

Nothing in them is run: pickles go through `read_pickle`, npz is read without pickles, and .mat holds numbers.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hookflat.errors import UserError
from hookflat.reading.cache import MAPPED_FROM, file_digest, kept
from hookflat.reading.npz import npz_arrays
from hookflat.reading.pickles import read_pickle

_LARGEST = 2**28
"""Bytes of one member of CIFAR's archives; the real ones have at most 154 million."""

_BATCHES = {  # split: members, of CIFAR-10 and of CIFAR-100
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "train"),
    "test": ("test_batch", "test"),
}
_CLASSES = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt")
_MEMBERS = {*_CLASSES, *(name + end for batches in _BATCHES.values() for name in batches for end in ("", ".bin"))}
_PIXEL_NAMES = ("image", "images", "x", "X", "data")
_LABEL_NAMES = ("label", "labels", "y", "fine_labels", "extrapolated_targets", "targets")


@dataclass(frozen=True)
class Arrays:
    """The rows of a split: pixels (N, H, W, C) uint8, columns of labels (N,), and class names where they are known."""

    file: Path
    pixels: np.ndarray
    labels: dict[str, np.ndarray]
    names: dict[str, list[str]] = field(default_factory=dict)


def read_archive(path: Path, splits: tuple[str, ...]) -> dict[str, Arrays] | None:
    """The splits of a file, or of a folder of them; None where it is none of these.

    A file without names of splits is whichever one is asked for. Raises UserError, naming the file, for a damaged one.
    """
    if path.is_dir():
        return _folder(path, splits)
    if re.search(r"\.(tar|tar\.gz|tgz)$", path.name):
        return _cifar(path, _packed(path))
    if path.suffix == ".npz":
        return _npz(path, splits)
    if path.suffix in (".pickle", ".pkl", ".mat"):
        return {split: _single(path) for split in splits[:1]} if len(splits) == 1 else {}
    return None


def _folder(path: Path, splits: tuple[str, ...]) -> dict[str, Arrays] | None:
    """Unpacked archives, SVHN's .mat, or an npz for each split."""
    there = {p.name: p for p in path.iterdir() if p.name in _MEMBERS and p.is_file()}
    if there:
        return _cifar(path, {name: file.read_bytes for name, file in there.items()})
    by_split = {}
    for split in splits:
        for file in (path / f"{split}_32x32.mat", path / f"{split}.mat", path / f"{split}.npz"):
            if file.is_file():
                by_split[split] = _single(file)
    return by_split or None


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def _packed(path: Path) -> dict[str, Callable[[], bytes]]:
    """The members of a tar that CIFAR's archives have, by their last name."""
    members: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name not in _MEMBERS or not member.isfile():
                    continue
                if member.size > _LARGEST:
                    raise UserError(f"{path}: {member.name} claims {member.size:,} bytes, more than any of CIFAR's")
                opened = tar.extractfile(member)
                assert opened is not None
                members[name] = partial(bytes, opened.read())
    except UserError:
        raise
    except Exception as error:  # damaged ones raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged: {reason} (download it again)") from error
    return members


def _cifar(path: Path, members: dict[str, Callable[[], bytes]]) -> dict[str, Arrays]:
    """Both splits of CIFAR-10 or CIFAR-100, as Python's pickles or binary."""
    by_split = {}
    names = _class_names(path, members)
    for split, batches in _BATCHES.items():
        parts = [_pickled(path, b, members[b]()) for b in batches if b in members]
        parts += [_binary(path, b, members[f"{b}.bin"]()) for b in batches if f"{b}.bin" in members]
        if parts:
            pixels = np.concatenate([x for x, _ in parts])
            labels = {name: np.concatenate([y[name] for _, y in parts]) for name in parts[0][1]}
            by_split[split] = Arrays(path, pixels, labels, {n: names[n] for n in labels if n in names})
    if not by_split:
        raise UserError(f"{path} has none of the files of CIFAR-10 or CIFAR-100 (data_batch_1, train, test_batch, ...)")
    return by_split


def _pickled(path: Path, name: str, stored: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    read = read_pickle(stored, f"{path}: {name}")
    columns = {"labels": "label", "fine_labels": "fine_label", "coarse_labels": "coarse_label"}
    try:
        pixels = read["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = {columns[key]: np.asarray(read[key]) for key in columns if key in read}
        return pixels, {k: y for k, y in labels.items() if len(y) == len(pixels)}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: {name} is no batch of CIFAR's: data (n, 3072) and labels (n,) are wanted") from error


def _binary(path: Path, name: str, stored: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    columns = ["coarse_label", "fine_label"] if name in ("train", "test") else ["label"]
    width = len(columns) + 3072
    if not stored or len(stored) % width:
        raise UserError(f"{path}: {name}.bin is cut off: {len(stored):,} bytes are no multiple of {width}")
    rows = np.frombuffer(stored, np.uint8).reshape(-1, width)
    pixels = rows[:, len(columns) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels, {column: rows[:, i] for i, column in enumerate(columns)}


def _class_names(path: Path, members: dict[str, Callable[[], bytes]]) -> dict[str, list[str]]:
    columns = {"label_names": "label", "fine_label_names": "fine_label", "coarse_label_names": "coarse_label"}
    names: dict[str, list[str]] = {}
    for member in ("batches.meta", "meta"):
        if member in members:
            read = read_pickle(members[member](), f"{path}: {member}")
            listed = {key: read[key] for key in columns if isinstance(read, dict) and isinstance(read.get(key), list)}
            names |= {columns[key]: [_text(name) for name in listed[key]] for key in listed}
    for member, column in (("batches.meta.txt", "label"), ("fine_label_names.txt", "fine_label"),
                           ("coarse_label_names.txt", "coarse_label")):  # fmt: skip
        if member in members:
            names[column] = members[member]().decode(errors="replace").split()
    return names


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


# --- one file of arrays -----------------------------------------------------------------------------------------------


def _npz(path: Path, splits: tuple[str, ...]) -> dict[str, Arrays]:
    arrays = npz_arrays(path)
    by_split = {s: _of(path, {p: arrays[f"{p}_{s}"] for p in ("x", "y") if f"{p}_{s}" in arrays}) for s in splits
             if f"x_{s}" in arrays}  # fmt: skip
    return by_split or ({splits[0]: _single(path)} if len(splits) == 1 else {})


def _single(path: Path) -> Arrays:
    """A file that is one split. A large pickle is read once, and mapped from then on."""
    if path.suffix == ".npz":
        return _of(path, npz_arrays(path))
    read = _mat if path.suffix == ".mat" else _pickle
    if path.stat().st_size < MAPPED_FROM:
        return _of(path, read(path))
    file = kept(f"{file_digest(path)}.npz", lambda opened: np.savez(opened, allow_pickle=False, **read(path)))
    return _of(path, npz_arrays(file))


def _pickle(path: Path) -> dict[str, np.ndarray]:
    read = read_pickle(path, str(path))
    if not isinstance(read, dict):
        raise UserError(f"{path} holds no dict of arrays, as the files of extra images do")
    return {k: np.asarray(v) for k, v in read.items() if k in (*_PIXEL_NAMES, *_LABEL_NAMES)}


def _mat(path: Path) -> dict[str, np.ndarray]:
    """SVHN's: X (H, W, C, N), and y from 1 to 10, where 10 is the digit 0."""
    from scipy.io import loadmat

    try:
        read = loadmat(path, variable_names=["X", "y"])
        pixels, labels = read["X"].transpose(3, 0, 1, 2), read["y"].reshape(-1)
    except Exception as error:  # damaged ones raise anything
        reason = f"{error or type(error).__name__}"
        raise UserError(f"{path} is no .mat of SVHN's, with X (32, 32, 3, N) and y (N, 1): {reason}") from error
    return {"image": pixels, "label": np.where(labels == 10, 0, labels)}


def _of(path: Path, arrays: dict[str, np.ndarray]) -> Arrays:
    """The arrays of one split: which are pixels and which are labels is told by their names."""
    images = [name for name in _PIXEL_NAMES if name in arrays]
    if not images:
        raise UserError(f"{path} has no images: {', '.join(arrays) or 'nothing'} instead of {', '.join(_PIXEL_NAMES)}")
    pixels = arrays[images[0]]
    if pixels.dtype != np.uint8:
        raise UserError(f"{path}: {images[0]} is {pixels.dtype}; images are uint8, from 0 to 255")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise UserError(f"{path}: {images[0]} is {pixels.shape}; images are (N, H, W, 3), (N, 3, H, W) or (N, H, W)")
    labels = {n: arrays[n].reshape(-1) for n in arrays if n in _LABEL_NAMES}
    for name, values in labels.items():
        if len(values) != len(pixels):
            raise UserError(f"{path}: {len(pixels)} images, but {len(values)} of {name}")
    return Arrays(path, pixels, labels)
