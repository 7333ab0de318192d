"""The paper's Table 1 from measured runs, its own numbers beside them; as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from hookflat.errors import UserError
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import recipes_folder
from hookflat.records.quantities import Role
from hookflat.reporting.external import External, external
from hookflat.reporting.formats import csv_text
from hookflat.reporting.gathering import Configuration, Gathered
from hookflat.reporting.runs import MeasuredRun, Network
from hookflat.reporting.settings import options_of, spelled
from hookflat.reporting.trust import flags_of
from hookflat.terminal import printable

Group = Literal["good", "average", "poor", ""]

ROLES: tuple[Role, ...] = ("clean error", "RErr", "RLoss", "average flatness", "worst flatness")
"""Of the numbers in the table."""


@dataclass(frozen=True)
class Cell:
    """A number over the seeds: mean and standard deviation (NaN for one seed). Empty without values."""

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """NaN where nothing was measured."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Of the seeds as a sample."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def text(self, decimals: int, *, signed: bool = False) -> str:
        """ "2.85 ± 0.19", "2.85", or "" where nothing was measured."""
        if not self.values:
            return ""
        mean = f"{self.mean:+.{decimals}f}" if signed else f"{self.mean:.{decimals}f}"
        mean = mean.replace("-", "−")
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{decimals}f}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its key, heading, factor to its unit, and how it is printed."""

    key: str
    heading: str
    decimals: int = 1
    signed: bool = False
    paper: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """A configuration and its numbers; errors in %; gaps are test minus train.

    `group`: "" for a rescaled network, and where RErr was not measured.
    """

    configuration: Configuration
    title: str
    group: Group
    cells: dict[str, Cell]
    paper: dict[str, float]
    trust: str = ""


@dataclass(frozen=True, eq=False)
class Table1:
    """Rows by test RErr. `numbers`: which one plays each role, "" for none; `attack`: what gave RErr."""

    rows: list[Row]
    columns: list[Column]
    numbers: dict[str, str]
    attack: str

    @property
    def with_trust(self) -> bool:
        """Whether flags of trust were looked at."""
        return any(row.trust for row in self.rows)

    @property
    def with_paper(self) -> bool:
        """Whether any row is one of the paper's."""
        return any(row.paper for row in self.rows)

    def texts(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and the cells of every row as text: ours, then the paper's."""
        theirs = [c for c in self.columns if c.paper] if self.with_paper else []
        heads = [
            "method",
            *(c.heading for c in self.columns),
            "group",
            "seeds",
            *(["trust"] if self.with_trust else []),
            *(f"paper: {c.heading}" for c in theirs),
        ]
        return heads, [
            [
                row.title,
                *(row.cells[c.key].text(c.decimals, signed=c.signed) for c in self.columns),
                row.group,
                str(len(row.configuration.runs)),
                *([row.trust] if self.with_trust else []),
                *(paper_text(row, c) for c in theirs),
            ]
            for row in self.rows
        ]


THEIR_NORM = "Linf"
"""Of the paper's threat: reports in others do not set its numbers beside theirs."""

PAPER = ("rerr_test", "rerr_train", "flatness", "rerr_test_early_stop")


def method_titles(table: Table1) -> dict[str, str]:
    """The names of methods, without hyper-parameters."""
    return {
        row.configuration.method: row.title.split(", ")[0]
        for row in table.rows
        if not row.configuration.rescaled and not row.configuration.checkpoint
    }


def published() -> dict[str, dict[str, float | str]]:
    """The paper's Table 1 (Stutz et al. 2021), by recipe: "method", and errors in %."""
    return {
        row["recipe"]: {"method": row["method"], **{name: float(row[name]) for name in PAPER}}
        for row in _rows("stutz2021.csv")
    }


@cache
def _names() -> dict[str, str]:
    """What the field calls the other recipes that ship; "official" where the paper's row of that name is another."""
    return {row["recipe"]: row["name"] for row in _rows("names.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    with (recipes_folder() / "published" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def title(configuration: Configuration) -> str:
    """The paper's name for a method, or the recipe's; with the options that make it another than its like."""
    if configuration.checkpoint:
        return printable(configuration.checkpoint)
    ours = all(run.trained_here for run in configuration.runs)
    name = in_words(configuration.method) if ours else configuration.method
    options = spelled(configuration.setting, " ")
    return printable(", ".join([f"{name} × {configuration.rescaled:g}" if configuration.rescaled else name, *options]))


def in_words(method: str) -> str:
    """A recipe's name: the paper's for a row of its table, the field's, or the file's without underscores."""
    row = published().get(method)
    return str(row["method"]) if row else _names().get(method) or method.replace("_", " ")


def representatives(rows: Sequence[Row]) -> list[Row]:
    """For each method the configuration of the least mean test RErr; a rescaled network or a checkpoint is its own."""
    first: dict[tuple[str, float | None, str], Row] = {}
    for row in rows:  # by test RErr
        configuration = row.configuration
        first.setdefault((configuration.method, configuration.rescaled, configuration.checkpoint), row)
    return list(first.values())


def short_title(row: Row, chosen: Sequence[Row]) -> str:
    """The title without hyper-parameters, where it is the only one of its method."""
    if row.configuration.checkpoint:
        return row.title
    alone = sum(other.configuration.method == row.configuration.method for other in chosen) == 1
    return row.title.split(", ")[0] if alone else row.title


def attack_of(label: str) -> str:
    """What measured an error, from the error's label: "AutoAttack" of "RErr (AutoAttack)"."""
    match = re.search(r"\((.+)\)", label)
    return match[1] if match else label


def table1(gathered: Gathered) -> Table1:
    """Sorted by test RErr and split at its 30 % and 70 % percentiles, as in the paper."""
    numbers: dict[str, str] = {role: gathered.playing(role) for role in ROLES}
    others = external(gathered)
    cells = [(c, _cells(c, numbers, others)) for c in gathered.configurations]
    cells.sort(key=lambda pair: (math.isnan(pair[1]["rerr"].mean), pair[1]["rerr"].mean))
    groups = split([math.nan if c.rescaled else values["rerr"].mean for c, values in cells])
    rows = [
        Row(
            configuration,
            title(configuration),
            group,
            values,
            _of_the_paper(configuration) if gathered.norm == THEIR_NORM else {},
            flags_of(configuration.runs, gathered.quantities),
        )
        for (configuration, values), group in zip(cells, groups, strict=True)
    ]
    columns = [
        Column("rerr", "RErr test", paper="rerr"),
        Column("rerr_train", "RErr train", paper="rerr_train"),
        Column("gap", "RErr gap", signed=True, paper="gap"),
        Column("loss", "RLoss test", _decimals(rows, "loss")),
        Column("loss_gap", "RLoss gap", _decimals(rows, "loss_gap"), signed=True),
        Column("average", "average flatness", _decimals(rows, "average"), paper="average"),
        Column("worst", "worst flatness", _decimals(rows, "worst")),
        Column("early", "early stop RErr", paper="early"),
        Column("difference", "early − last", signed=True, paper="difference"),
        Column("clean", "clean error"),
        Column("external", "external RErr"),
    ]
    shown = [c for c in columns if any(row.cells[c.key].values for row in rows)]
    return Table1(rows, shown, numbers, attack_of(gathered.name(numbers["RErr"])) if numbers["RErr"] else "no attack")


def split(errors: Sequence[float]) -> list[Group]:
    """Good up to the 30 % percentile, poor above the 70 % percentile of the methods' test RErr; "" for NaN."""
    known = [e for e in errors if not math.isnan(e)]
    low, high = np.percentile(known, [30, 70]) if known else (math.nan, math.nan)
    return ["" if math.isnan(e) else "good" if e <= low else "poor" if e > high else "average" for e in errors]


def _cells(configuration: Configuration, numbers: dict[str, str], others: dict[str, External]) -> dict[str, Cell]:
    error, loss = numbers["RErr"], numbers["RLoss"]
    pairs = [(run.networks.get("last"), run.networks.get("best")) for run in configuration.runs]

    def over(number: Callable[[Network], float | None], networks: Iterable[Network | None]) -> Cell:
        values = [number(network) for network in networks if network]
        return Cell(tuple(value for value in values if value is not None))

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    def difference(pair: tuple[Network | None, Network | None]) -> float | None:
        last, best = (network.test.get(error) if network else None for network in pair)
        return None if last is None or best is None else 100 * (best - last)

    last, best = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    differences = [d for pair in pairs if (d := difference(pair)) is not None]
    return {
        "rerr": over(lambda n: percent(n.test.get(error)), last),
        "rerr_train": over(lambda n: percent(n.train.get(error)), last),
        "gap": over(lambda n: percent(n.gap.get(error)), last),
        "loss": over(lambda n: n.test.get(loss), last),
        "loss_gap": over(lambda n: n.gap.get(loss), last),
        "average": over(lambda n: n.test.get(numbers["average flatness"]), last),
        "worst": over(lambda n: n.test.get(numbers["worst flatness"]), last),
        "early": over(lambda n: percent(n.test.get(error)), best),
        "difference": Cell(tuple(differences)),
        "clean": over(lambda n: percent(n.test.get(numbers["clean error"])), last),
        "external": Cell(tuple(others[run.name].rerr for run in configuration.runs if run.name in others)),
    }


def _of_the_paper(configuration: Configuration) -> dict[str, float]:
    """The paper's numbers by our columns, for a recipe of its table that was trained as it ships."""
    row = published().get(configuration.method)
    if not row or configuration.rescaled or not all(_as_it_ships(run) for run in configuration.runs):
        return {}
    test, train, flatness, early = (float(row[name]) for name in PAPER)
    ours = {"rerr": test, "rerr_train": train, "gap": test - train, "average": flatness}
    return ours | {"early": early, "difference": early - test}


def _as_it_ships(run: MeasuredRun) -> bool:
    """Whether a run's method has the options of the recipe of its name, at a scale that ships."""
    return run.trained_here and _method(run.recipe) in _shipped(run.method)


def _method(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options that are a recipe's method; data and the length of the training are its scale."""
    tables = ("model", "optimizer", "schedule", "attack", "loss", "plugins")
    return options_of({name: recipe[name] for name in tables if name in recipe})


@cache
def _shipped(method: str) -> list[dict[str, Any]]:
    """The method's options in the shipped recipe, at every scale that ships; none where there is no such recipe."""
    recipe = recipes_folder() / f"{method}.toml"
    scales = [[], *([scale] for scale in sorted((recipes_folder() / "scales").glob("*.toml")))]
    methods = []
    for overlays in scales:
        with suppress(UserError):
            methods.append(_method(load_recipe(recipe, overlays=overlays, catalogue=catalogue_of()).tables))
    return methods


def paper_text(row: Row, column: Column) -> str:
    """The paper's number of a column, "" where it has none."""
    if column.paper not in row.paper:
        return ""
    decimals = 2 if column.key == "average" else 1
    value = row.paper[column.paper]
    return (f"{value:+.{decimals}f}" if column.signed else f"{value:.{decimals}f}").replace("-", "−")


def about_table(table: Table1) -> str:
    """What its reader has to know."""
    text = (
        f"Errors in %, RErr by {table.attack}, sorted by test RErr, mean ± standard deviation over seeds; good and "
        "poor are the 30 % and 70 % percentiles of test RErr; gaps are test minus train; lower is flatter."
    )
    if table.with_trust:
        text += " “trust”: how many signs that RErr is too low were found, in words below."
    if table.with_paper:
        text += " “paper”: the numbers of Stutz et al. 2021, Table 1 (CIFAR-10, ResNet-18), not measured here."
    return text


def _decimals(rows: Iterable[Row], key: str) -> int:
    """So many that the typical number of a column has three digits, two at least."""
    sizes = [abs(row.cells[key].mean) for row in rows if row.cells[key].values]
    middle = statistics.median(sizes) if sizes else 0.0
    return max(2, 2 - math.floor(math.log10(middle))) if middle > 0 else 2


def as_csv(table: Table1) -> str:
    """Means and standard deviations as full numbers, errors in %."""
    heads = ["method", "recipe", "group", "seeds"]
    heads += [f"{c.key}_{part}" for c in table.columns for part in ("mean", "std")]
    heads += [f"paper_{c.paper}" for c in table.columns if c.paper]
    lines = [
        [
            row.title,
            row.configuration.key,
            row.group,
            len(row.configuration.runs),
            *(_plain(v) for c in table.columns for v in (row.cells[c.key].mean, row.cells[c.key].std)),
            *(_plain(row.paper.get(c.paper, math.nan)) for c in table.columns if c.paper),
        ]
        for row in table.rows
    ]
    return csv_text(heads, lines)


def breaks(table: Table1) -> list[int]:
    """The rows with which another group begins."""
    groups = [row.group for row in table.rows]
    return [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
