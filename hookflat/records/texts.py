"""JSON and TOML as they lie in folders of runs: whole, or told by name when somebody or something damaged them."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hookflat.errors import UserError


class DamagedError(UserError):
    """A file of a run is not as hookflat wrote it."""


LARGEST = 64 * 2**20
"""Bytes of a file that is read whole: far above what hookflat writes."""
_DEEPEST = 50


def read_json(file: Path) -> Any:
    """Raises DamagedError for what is damaged, too large, too deep, or holds integers of more than 64 bits.

    Raises UserError where the system does not give it.
    """
    return _read(file, sound_json, "is not what hookflat writes")


def read_toml(file: Path) -> dict[str, Any]:
    """As `read_json`."""
    return _read(file, tomllib.loads, "cannot be read")


def read_lines(file: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a `metrics.jsonl`, their finite numbers and words; and the numbers of the lines that are damaged.

    No records where there is no file. Raises UserError for a file that cannot be read at all.
    """
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    if not file.exists():
        return records, damaged
    for number, line in enumerate(_text(file, errors="replace").splitlines(), 1):
        try:
            record = sound_json(line)
        except ValueError:
            damaged.append(number)
            continue
        if isinstance(record, dict) and _is_index(record.get("epoch")):
            records.append({k: v for k, v in record.items() if isinstance(v, str | int | float) and _is_finite(v)})
        else:
            damaged.append(number)
    return records, damaged


def sound_json(text: str | bytes) -> Any:
    """Raises ValueError for what is no JSON, too deep, or holds integers of more than 64 bits."""
    try:
        return _sound(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read(file: Path, parse: Callable[[str], Any], otherwise: str) -> Any:
    try:
        return _sound(parse(_text(file)))
    except RecursionError:
        raise DamagedError(f"{file} {otherwise}: it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise DamagedError(f"{file} {otherwise}: {error}") from None


def _text(file: Path, errors: str = "strict") -> str:
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise DamagedError(f"{file} cannot be read: it has {size} bytes, more than {LARGEST}")
        return file.read_text(encoding="utf-8", errors=errors)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def _sound(value: Any, depth: int = 0) -> Any:
    """`value` as it is. Raises ValueError where others would fail on it."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for name, inner in value.items():
            _sound(name)
            _sound(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _sound(inner, depth + 1)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("it holds an integer of more than 64 bits")
    elif isinstance(value, str):
        value.encode()  # JSON can spell halves of a character
    return value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_finite(value: str | float) -> bool:
    return isinstance(value, str) or math.isfinite(value)
