"""Nested tables, value by value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

Place = tuple[str, ...]
"""The path of a table or a key."""

NORMS = ("Linf", "L2", "L1")
"""Of threats: a value may be written for each, `eps = { Linf = "8/255", L2 = 0.5 }`."""

THREAT_OPTIONS = ("norm", "eps", "eps_factor", "step_size")
"""What `[attack]` keeps where its plugin changes: the same threat, attacked otherwise."""

RADII: tuple[Place, ...] = tuple((table, key) for table in ("attack", "eval") for key in ("eps", "step_size"))
"""What is a length in the norm of its table's threat."""


def is_by_norm(value: Any) -> bool:
    """Whether it is a value for each norm, and no table."""
    return isinstance(value, dict) and bool(value) and value.keys() <= set(NORMS)


def norm_of(table: str, tables: dict[str, Any]) -> Any:
    """Of the threat of `[attack]` or `[eval]`: measures take that of `[attack]` where `[eval]` names none."""
    said = [t["norm"] for name in (table, "attack") if isinstance(t := tables.get(name), dict) and "norm" in t]
    return said[0] if said else NORMS[0]


def flat(tables: dict[str, Any], at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """(path, value) of every value in nested tables; an empty table is a value."""
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*at, key))
        else:
            yield (*at, key), value


def flat_by_norm(tables: dict[str, Any], at: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(path, value) of every value that is written for each norm."""
    for key, value in tables.items():
        if is_by_norm(value):
            yield (*at, key), value
        elif isinstance(value, dict):
            yield from flat_by_norm(value, (*at, key))


def finite(value: Any) -> Any:
    """A value without what JSON has not: a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes, in ASCII."""
    return json.dumps(finite(value), indent=indent, allow_nan=False, default=str)


def as_key(setup: Any) -> str:
    """Nested tables as a text, 20 and 20.0 alike."""
    return json.dumps(_floats(setup), sort_keys=True)


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
