"""TOML of recipes and of `--set`, read in bounds: no text, however strange, costs more than a second and a line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.terminal import clipped, shortened

LARGEST = 256 * 1024
"""Bytes of a file; the shipped recipes have up to 2,000."""
DEEPEST = 16
"""Tables and lists inside each other; a recipe needs four."""
LONGEST_NAME, LONGEST_TEXT = 200, 4000
"""Characters of a key, and of a value."""
LONGEST_FOLDER = 1000
"""Characters of where something is written: deeper ones exhaust what makes and removes folders."""
_DOTS = 500
"""In a line."""


def read_toml(file: Path) -> tuple[dict[str, Any], str]:
    """The tables of a file, and its text. Raises UserError, with the line, for what is no TOML or out of bounds."""
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise UserError(f"{file}: cannot be read: it has {size} bytes, and a recipe at most {LARGEST}")
        content = file.read_bytes()
        text = content.decode()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: cannot be read: byte {content[error.start]:#04x} is no UTF-8 text") from None
    try:
        return parsed(text), text
    except ValueError as error:
        match = re.search(r"at line (\d+)", str(error))
        line = match[1] if match else text.count("\n") + 1 if "end of document" in str(error) else 1
        raise UserError(f"{file}:{line}: not valid TOML (is text in quotes?): {error}") from None


def parsed(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError for what is none."""
    if line := _line(text, lambda line: line.count(".") > _DOTS):  # keys of many parts take hours
        raise ValueError(f"more than {_DOTS} dots {line}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        line = _line(text, lambda line: line.count("[") + line.count("{") > DEEPEST)
        raise ValueError(f"lists or tables are nested too deep {line}".strip()) from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own limit
        line = _line(text, lambda line: re.search(r"[\d_]{4000}", line))
        raise ValueError(f"a number of thousands of digits {line}".strip()) from None


def _line(text: str, wrong: Callable[[str], Any]) -> str:
    """The first line that is `wrong`, "(loss.beta, at line 3)"; "" where there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if wrong(line):
            return f"({clipped(line.partition('=')[0].strip(), 40)}, at line {number})"
    return ""


def out_of_bounds(value: Any, depth: int = 0) -> str | None:
    """Why a value can be no option, whoever asks for it; None where it can."""
    if depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    if isinstance(value, dict | list | tuple):
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return next((why for v in inner if (why := out_of_bounds(v, depth + 1))), None)
    if isinstance(value, int) and value.bit_length() > 63:
        return f"should have at most 64 bits, not {value.bit_length() + 1}"
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return f"should be text of at most {LONGEST_TEXT} characters, not {len(value)}: {shortened(value)}"
        if not value.replace("\n", "").replace("\t", "").isprintable():
            return f"should be text without control characters, not {shortened(value)}"
    return None
