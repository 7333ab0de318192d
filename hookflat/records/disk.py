"""Files that are whole or not there; and a disk that is full, read-only or gone, told in one place."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = {"ENOSPC", "EDQUOT"}
READ_ONLY = {"EROFS"}
GONE = {"EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EREMOTEIO"}
_WRITTEN_BY_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def replacing(file: Path) -> Generator[Path]:
    """A path to write to, which takes the place of `file` once all of it is on the disk, or goes away."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.writing")
    try:
        yield beside
        synced(beside)
        beside.replace(file)
    except OSError as error:
        error.filename = error.filename or str(file)  # a write does not say whose it was
        raise
    finally:
        with suppress(OSError):
            beside.unlink()


def synced(path: Path) -> None:
    """What was written to a file, or the names in a folder, is on the disk, not only on its way there."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_failed(error: OSError) -> bool:
    """Whether the disk is full or gone, which no other choice of a folder's name would put right."""
    return errno.errorcode.get(error.errno or 0) in FULL | GONE


def refused(error: BaseException, place: Path | None = None, *, inside: bool = False) -> str | None:
    """What the disk of `place` refused, and what to do, where `error` comes of that; else None.

    `inside`: any system error about a file inside `place` comes of it, too. Libraries wrap what the system said: the
    errors behind an error count as well.
    """
    for cause in _chain(error):
        if number := _number(cause):
            file = getattr(cause, "filename", None)
            if what := _what(errno.errorcode.get(number, ""), inside and _is_inside(file, place)):
                return f"{what[0]}: {file or place or 'what was written'}: {os.strerror(number)}. {what[1]}"
    return None


def _is_inside(file: str | bytes | None, folder: Path | None) -> bool:
    if file is None or folder is None:
        return False
    path = Path(os.fsdecode(file)).absolute()
    return path != folder.absolute() and path.is_relative_to(folder.absolute())


def _what(name: str, inside: bool) -> tuple[str, str] | None:
    if name in FULL:
        return "disk full", "Free some space"
    if name in READ_ONLY:
        return "the disk is read-only", "Make it writable"
    if name in GONE:
        return "the disk does not answer", "Wait until it is back"
    return ("a file of the run cannot be written or read", "Look after the folder") if inside else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, once each."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _number(error: BaseException) -> int | None:
    """The system's number; safetensors has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    match = _WRITTEN_BY_RUST.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(match[1]) if match else None
