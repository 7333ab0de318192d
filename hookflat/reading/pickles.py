"""Pickles of strangers: arrays and plain containers, and nothing that runs."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hookflat.errors import UserError


class _Dtype:
    """A type of numbers. numpy's own takes any state that a pickle gives it, also ones that break the memory."""

    def __init__(self, code: str | bytes, *flags: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch(r"[|<>=]?[biuf][1248]", self.code):
            raise pickle.UnpicklingError(f"an array of {self.code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.code = order + self.code[-2:] if order in ("<", ">") else self.code

    def read(self, stored: bytes | bytearray) -> np.ndarray:
        return np.frombuffer(stored, np.dtype(self.code))


class _Array:
    """An array, filled when its state comes."""

    def __init__(self, *empty: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, stored = state
        self.array = dtype.read(stored).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: _Dtype, stored: bytes) -> Any:
    return dtype.read(stored)[0]


def _frombuffer(stored: bytearray, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return dtype.read(stored).reshape(shape, order=order)


def _encoded(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_READ: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
    ("builtins", "bytearray"): bytearray,
}
for _package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _READ[f"{_package}.multiarray", "_reconstruct"] = _Array
    _READ[f"{_package}.multiarray", "scalar"] = _scalar
    _READ[f"{_package}.numeric", "_frombuffer"] = _frombuffer


class _Restricted(pickle.Unpickler):
    """Calls functions of this module alone, whatever a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _READ:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return _READ[module, name]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k.decode() if isinstance(k, bytes) else k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.array if isinstance(value, _Array) else value


def read_pickle(stored: bytes | Path, source: str) -> Any:
    """What a pickle holds: arrays of numbers, numbers, strings, lists and dicts. Nothing of it is run.

    Python 2's text comes as bytes, but for the keys of dicts. Raises UserError, naming `source`, for anything else.
    """
    try:
        with stored.open("rb") if isinstance(stored, Path) else io.BytesIO(stored) as opened:
            return _plain(_Restricted(opened, encoding="bytes").load())
    except Exception as error:  # damaged ones raise anything
        reason = f"{error or type(error).__name__}"
        raise UserError(f"{source} is no pickle of arrays: {reason} (what could run code is not read)") from error
