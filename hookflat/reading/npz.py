"""numpy's npz files, their large arrays mapped into memory."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hookflat.errors import UserError
from hookflat.reading.cache import MAPPED_FROM, file_digest, kept


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays by name. Large ones are mapped: in the file, or in an unpacked copy where they are compressed.

    Raises UserError, naming the file, for a damaged one, and for arrays that are no numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED and m.file_size >= MAPPED_FROM for m in members):
                unpacked = kept(f"{file_digest(path)}.npz", lambda opened: _unpack(archive, opened))
                return npz_arrays(unpacked)
            return {m.filename.removesuffix(".npy"): _array(path, archive, m) for m in members}
    except (UserError, OSError):
        raise
    except Exception as error:  # damaged ones raise anything
        raise UserError(f"{path} is no npz of numbers that can be read: {error or type(error).__name__}") from error


def _unpack(archive: zipfile.ZipFile, opened: BinaryIO) -> None:
    with zipfile.ZipFile(opened, "w", zipfile.ZIP_STORED) as copy:
        for name in archive.namelist():
            with archive.open(name) as packed, copy.open(name, "w", force_zip64=True) as plain:
                shutil.copyfileobj(packed, plain, 2**20)


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.file_size < MAPPED_FROM:
        with archive.open(member) as opened:
            return np.lib.format.read_array(opened, allow_pickle=False)
    with path.open("rb") as opened:  # the member's own header, and numpy's, then the numbers as they are in memory
        opened.seek(member.header_offset)
        name, extra = struct.unpack("<26xHH", opened.read(30))
        opened.seek(name + extra, 1)
        version = np.lib.format.read_magic(opened)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(opened)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, mode="c", offset=opened.tell(), shape=shape, order=order)
