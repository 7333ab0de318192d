"""The report as one HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hookflat.records.quantities import Quantity, is_error_of, quantity
from hookflat.reporting.analysis import Analysis
from hookflat.reporting.correlations import (
    ABOUT_STATISTICS,
    about_ranking,
    ranking_lines,
    statistics_lines,
    within_lines,
)
from hookflat.reporting.explorer import explorer
from hookflat.reporting.formats import without_empty
from hookflat.reporting.gathering import Gathered
from hookflat.reporting.leaderboard import ABOUT_LEADERBOARD, leaderboard, leaderboard_lines
from hookflat.reporting.protocols import protocol_lines
from hookflat.reporting.runs import MeasuredRun
from hookflat.reporting.style import Drawing
from hookflat.reporting.table import Column, Row, Table1, about_table, method_titles, paper_text, title
from hookflat.reporting.trust import flagged
from hookflat.terminal import printable

LIMIT = 4_500_000
"""Bytes of a page, above which recipes of single runs are left out, then figures are pictures."""
MATTER = ("rerr", "loss", "average")
"""The columns of Table 1 that a narrow screen shows."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a report says, however it is written."""

    gathered: Gathered
    table: Table1
    analysis: Analysis
    drawn: list[Drawing]
    said: list[str]
    details: list[str]


@dataclass(frozen=True)
class Entry:
    """A run as the page lists it; `environment`: the number of its, 0 where it is not known."""

    run: MeasuredRun
    recipe: str
    command: str
    environment: int
    numbers: list[tuple[str, str, str, str]]


def page(contents: Contents, inline: dict[str, str], pictures: dict[str, str]) -> str:
    """The page; `inline`: the figures as SVG elements, by name; `pictures`: as smaller elements without links."""
    text = ""
    for figures, recipes in ((inline, True), (inline, False), (pictures, False)):
        text = _render(contents, figures, recipes=recipes)
        if len(text.encode()) <= LIMIT:
            break
    return text


def _without_codes(value: Any) -> Any:
    """What the template writes: texts without control characters, which no page may hold; Markup is our own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _render(contents: Contents, inline: dict[str, str], *, recipes: bool) -> str:
    gathered, table, analysis = contents.gathered, contents.table, contents.analysis
    environments: dict[str, int] = {}
    configurations = [
        (c, title(c), [_entry(run, environments, recipes=recipes) for run in c.runs]) for c in gathered.configurations
    ]
    order = {id(row.configuration): i for i, row in enumerate(table.rows)}
    configurations.sort(key=lambda entry: order[id(entry[0])])
    explored = explorer(gathered, table)
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    template = Environment(
        loader=PackageLoader("hookflat.reporting", "."),
        autoescape=True,
        finalize=_without_codes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    return template.render(
        gathered=gathered,
        table=table,
        matter=MATTER,
        flagged=flagged(gathered),
        cells=lambda row: [(column, _cell(row, column), paper_text(row, column)) for column in table.columns],
        leaders=without_empty(*leaderboard_lines(leaderboard(table), table)),
        about_leaderboard=ABOUT_LEADERBOARD,
        explorer=explored,
        last_ones=any(point["network"] == "last" for point in explored.get("points", [])),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        drawn=contents.drawn,
        inline=inline,
        said=contents.said,
        details=contents.details,
        about_ranking=about_ranking(analysis),
        ranking=_by(ranking_lines(analysis), column=1),
        about_table=about_table(table),
        about_statistics=ABOUT_STATISTICS,
        statistics=_by(statistics_lines(analysis), column=1),
        within=_by(within_lines(analysis, method_titles(table)), column=1),
        protocol=protocol_lines(gathered, table.attack),
        configurations=configurations,
        recipes=recipes,
        environments=list(environments),
    )


def _cell(row: Row, column: Column) -> str:
    return row.cells[column.key].text(column.decimals, signed=column.signed)


def _by(lines: tuple[list[str], list[list[str]]], column: int) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table as several, by the values of a column, which is left out."""
    heads, rows = lines
    parts: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        parts[row[column]].append([*row[:column], *row[column + 1 :]])
    rest = [*heads[:column], *heads[column + 1 :]]
    return [(value, *without_empty(rest, part)) for value, part in parts.items()]


def _entry(run: MeasuredRun, environments: dict[str, int], *, recipes: bool) -> Entry:
    said = {k: v for k, v in run.environment.items() if k not in ("command", "plugin_files")}
    shown = tomli_w.dumps(_without_none(said))
    number = environments.setdefault(shown, len(environments) + 1) if said else 0
    command = run.environment.get("command")
    recipe = tomli_w.dumps(run.recipe) if recipes else ""
    declared = run.quantities
    numbers = [
        (network.label, split, *_shown(name, value, declared))
        for network in run.networks.values()
        for split, values in (("test", network.test), ("train", network.train))
        for name, value in values.items()
    ]
    return Entry(run, recipe, " ".join(map(str, command[1:])) if isinstance(command, list) else "", number, numbers)


def _shown(name: str, value: float, declared: dict[str, Quantity]) -> tuple[str, str]:
    """A number in words, and its value with all digits that matter."""
    base = is_error_of(name)
    what = quantity(base or name, declared)
    text = f"{100 * value:.4g} %" if what.unit == "share" else f"{value:.5g}"
    return what.label + (", standard error" if base else ""), text.replace("-", "−")


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in table.items() if v is not None}
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in kept.items()}
