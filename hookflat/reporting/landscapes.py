"""RLoss along random directions in weight space, as the measure keeps it (Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from hookflat.recipe.tables import as_key
from hookflat.records.texts import sound_json


class LandscapeCurve(NamedTuple):
    """RLoss (P,) at the points t (P,), the mean over random directions, and RErr at t = 0, under a threat of `norm`.

    `radius`: the relative length of a direction. `key`: how it was measured, equal where landscapes can be compared.
    """

    t: list[float]
    rloss: list[float]
    rerr: float
    directions: int
    radius: float
    norm: str
    key: str


def read_landscape(file: Path, threat: dict[str, Any]) -> LandscapeCurve:
    """The table of a landscape, measured under `threat`. Raises OSError, KeyError or ValueError for another file."""
    import pyarrow
    from pyarrow import parquet

    try:
        read = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    table, about = read.to_pydict(), sound_json((read.schema.metadata or {}).get(b"hookflat", b"{}"))
    lines = [values for name, values in table.items() if name.startswith("rloss_")]
    t, middle = table["t"], min(range(len(table["t"])), key=lambda i: abs(table["t"][i]))
    errors = [values[middle] for name, values in table.items() if name.startswith("rerr_")]
    means = [fmean(at) for at in zip(*lines, strict=True)]
    return LandscapeCurve(
        t, means, fmean(errors), len(lines), about["radius"], threat.get("norm", "Linf"), as_key(about | threat)
    )
