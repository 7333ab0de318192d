"""Networks that others trained, ranked by robust error and by flatness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hookflat.reporting.formats import csv_text
from hookflat.reporting.runs import MeasuredRun
from hookflat.reporting.table import Column, Row, Table1

MEASURED = ("rerr", "loss", "average", "worst", "clean", "external")
"""The columns of Table 1 that it has, beside that of the flags of trust."""

ABOUT_LEADERBOARD = (
    "Every network, with its place by test RErr and by average-case flatness; 1 is the most robust, and the flattest."
)


@dataclass(frozen=True, eq=False)
class Standing:
    """A network's place. `by_error`, `by_flatness`: 1 is the lowest, equal ones share a place; None where not measured.

    `method` and `architecture`: "" where nothing is said.
    """

    row: Row
    by_error: int | None
    by_flatness: int | None
    method: str
    architecture: str
    early_stopped: bool


def leaderboard(table: Table1) -> list[Standing]:
    """The rows of Table 1, where any is a checkpoint's; empty for trainings of one's own."""
    rows = [row for row in table.rows if not row.configuration.rescaled]
    if not any(row.configuration.checkpoint or not row.configuration.runs[0].trained_here for row in rows):
        return []
    error, flatness = (_places([row.cells[key].mean for row in rows]) for key in ("rerr", "average"))
    return [
        Standing(
            row,
            error[i],
            flatness[i],
            method=row.configuration.method if row.configuration.method != row.title else "",
            architecture=architecture(row.configuration.runs[0]),
            early_stopped=row.configuration.runs[0].early_stopped,
        )
        for i, row in enumerate(rows)
    ]


def architecture(run: MeasuredRun) -> str:
    """A network in words: "timm:resnet18", "wrn, depth 28, width 10"; "" for RobustBench, which knows it alone."""
    options: dict[str, Any] = run.recipe.get("model", {})
    name = str(options.get("name", ""))
    if network := options.get("network"):
        return f"{name}:{network}"
    sizes = [f"{key} {value}" for key, value in options.items() if type(value) is int]
    return ", ".join([name, *sizes])


def leaderboard_lines(standings: Sequence[Standing], table: Table1) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column may be empty."""
    columns = shown(table)
    heads = ["by RErr", "by flatness", "network", "method", "architecture", "training"]
    heads += [*(c.heading for c in columns), "trust"]
    lines = [
        [
            *("" if place is None else str(place) for place in (s.by_error, s.by_flatness)),
            s.row.title,
            s.method,
            s.architecture,
            "early-stopped" if s.early_stopped else "",
            *(s.row.cells[c.key].text(c.decimals) for c in columns),
            s.row.trust,
        ]
        for s in standings
    ]
    return heads, lines


def leaderboard_csv(standings: Sequence[Standing], table: Table1) -> str:
    """The same with full numbers, errors in %."""
    columns = shown(table)
    heads = ["place_by_rerr", "place_by_flatness", "network", "method", "architecture", "early_stopped"]
    lines = [
        [s.by_error, s.by_flatness, s.row.title, s.method, s.architecture, s.early_stopped]
        + ["" if math.isnan(mean := s.row.cells[c.key].mean) else f"{mean:.6g}" for c in columns]
        + ([s.row.trust] if table.with_trust else [])
        for s in standings
    ]
    return csv_text([*heads, *(c.key for c in columns), *(["trust"] if table.with_trust else [])], lines)


def shown(table: Table1) -> list[Column]:
    """The columns of Table 1 that are measured and stand in a leaderboard."""
    return [column for column in table.columns if column.key in MEASURED]


def _places(values: Sequence[float]) -> list[int | None]:
    return [None if math.isnan(v) else 1 + sum(other < v for other in values) for v in values]
