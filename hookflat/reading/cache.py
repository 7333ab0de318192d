"""Arrays that took long to make, kept in a folder of the user's and mapped into memory where they are large."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from hookflat.errors import UserError

MAPPED_FROM = 2**30
"""Bytes from which an array is mapped into memory, page by page as it is wanted, instead of read whole."""

_DIGEST = 16
"""Bytes of the checksum behind an array."""


def folder() -> Path:
    """Where arrays are kept: HOOKFLAT_CACHE, or `hookflat` in the user's cache folder."""
    if named := os.environ.get("HOOKFLAT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hookflat"


def digest(parts: Iterable[bytes]) -> str:
    """A name of 32 letters, equal for equal content."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def file_digest(file: Path) -> str:
    """The same of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def kept(name: str, write: Callable[[BinaryIO], None], whole: Callable[[Path], bool] = Path.is_file) -> Path:
    """The file of this name; where there is none, or not a `whole` one, it is written, once.

    Other processes that want it wait meanwhile. It is written beside its place and renamed. Raises the OSError of a
    write that fails, naming the file, and leaves nothing behind; UserError where nobody may write there.
    """
    file = folder() / name
    if whole(file):
        return file
    with _locked(file):
        if whole(file):  # somebody wrote it while we waited
            return file
        beside = file.with_name(f"{name}.writing")
        try:
            with beside.open("wb") as opened:
                write(opened)
                opened.flush()
                os.fsync(opened.fileno())
            beside.replace(file)
        except OSError as error:
            error.filename = error.filename or str(file)  # what the system says of a write names none
            raise
        finally:
            beside.unlink(missing_ok=True)
    return file


@contextmanager
def _locked(file: Path) -> Generator[None]:
    """Inside, this process alone makes the file, in a folder that is there."""
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"the cache {file.parent} cannot be written to ({error.strerror}): name another folder by HOOKFLAT_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()


def kept_array(key: str, parts: Callable[[], Iterable[np.ndarray]], count: int) -> np.ndarray:
    """The array of `count` rows that is kept as `key`, made from its `parts` in order where there is none."""

    def write(opened: BinaryIO) -> None:  # plainly: where the disk is full, a write into a mapped file kills
        content = hashlib.blake2b(digest_size=_DIGEST)
        for number, part in enumerate(parts()):
            if number == 0:
                about = {"shape": (count, *part.shape[1:]), "fortran_order": False, "descr": part.dtype.str}
                np.lib.format.write_array_header_1_0(opened, about)
            values = np.ascontiguousarray(part).data
            content.update(values)
            opened.write(values)
        opened.write(content.digest())  # behind the array, where numpy does not look

    array = _opened(folder() / f"{key}.npy", count)
    if array is None:
        array = _opened(kept(f"{key}.npy", write, lambda file: _opened(file, count) is not None), count)
    assert array is not None
    return array


def _opened(file: Path, count: int) -> np.ndarray | None:
    """The array of a file; None where there is none, or a damaged one. One that is mapped is not read for that."""
    try:
        mapped = file.stat().st_size >= MAPPED_FROM
        array = np.load(file, mmap_mode="c" if mapped else None, allow_pickle=False)  # "c": nothing is written back
        with file.open("rb") as opened:
            opened.seek(-_DIGEST, os.SEEK_END)
            written = opened.read()
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
        return None
    if len(array) != count or not (mapped or hashlib.blake2b(array.data, digest_size=_DIGEST).digest() == written):
        return None
    return array
