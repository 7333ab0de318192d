"""Runs side by side: the recipe lines and the numbers that differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hookflat.recipe.tables import flat
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import Quantity, is_error_of, quantity
from hookflat.records.results import Results
from hookflat.records.texts import DamagedError


@dataclass(frozen=True)
class Row:
    """A name and each run's value, None where it has none; `texts`: as a table shows them, if it is `shown` there.

    `group`: what the names of rows that belong together begin with.
    """

    name: str
    values: list[Any]
    texts: list[str]
    shown: bool = True
    always: bool = False
    """Also where all runs have the same."""
    group: str = ""


def compare(folders: Sequence[Path]) -> tuple[list[Row], list[Row], list[str]]:
    """(recipe rows, number rows): what differs, and what runs are judged by; and the damaged results, left out.

    The first of the number rows say under which threats the others were measured, where these differ. Raises UserError
    for a folder that is no run's, and a damaged recipe.
    """
    damaged: list[str] = []
    recipes = [dict(flat(RunFolder(folder).read_recipe())) for folder in folders]
    results = [_results(RunFolder(folder), damaged) for folder in folders]
    threats = [{f"{part}threat": r.protocol.threat for part, r in of.items()} for of in results]
    measured = [_numbers(of) for of in results]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    lines = [(".".join(key), [recipe.get(key) for recipe in recipes]) for key in keys]
    names = dict.fromkeys(name for numbers in measured for name in numbers)
    rows = []
    for name in dict.fromkeys(name for of in threats for name in of):
        said = [of.get(name) for of in threats]
        if len({*said} - {None}) > 1:
            rows.append(Row(name, said, [text or "-" for text in said]))
    for protocol in dict.fromkeys(protocol for of in results for protocol in of):
        said = ["measured" if protocol in of else None for of in results]
        rows.append(Row(protocol.strip() or "its own measures", said, [text or "-" for text in said]))
    for name in names:
        pairs = [numbers.get(name) for numbers in measured]
        there = [p for p in pairs if p is not None]
        shown = not there[0].error and all(there[0].protocol in of for of in results)
        group = there[0].group
        always = group == f"{there[0].protocol}last test" and there[0].what.headline and shown
        texts = ["-" if p is None else p.text for p in pairs]
        rows.append(Row(name, [None if p is None else p.value for p in pairs], texts, shown, always, group))
    recipe_rows = [Row(name, values, [_text(v) for v in values]) for name, values in lines]
    lines_that_differ, numbers_that_differ = (
        [row for row in part if row.always or _differs(row.values)] for part in (recipe_rows, rows)
    )
    return lines_that_differ, numbers_that_differ, damaged


def _results(folder: RunFolder, damaged: list[str]) -> dict[str, Results]:
    """A run's own, under "", and those of `hookflat eval` under the names of their folders and a space."""
    by_protocol: dict[str, Results] = {}
    for place in (folder, *folder.evaluations()):
        try:
            results = place.read_results()
        except DamagedError as error:
            damaged.append(str(error))
            continue
        if results is not None:
            by_protocol["" if place is folder else f"{place.path.name} "] = results
    return by_protocol


@dataclass(frozen=True)
class _Number:
    """A measured number, by which protocol, its text; `error`: whether it is another one's standard error."""

    value: float
    what: Quantity
    protocol: str
    group: str
    text: str
    error: bool = False


def _numbers(of: dict[str, Results]) -> dict[str, _Number]:
    """Every measured number of a run by what it is, "last test RLoss", of its own measures and of `hookflat eval`'s."""
    by_label: dict[str, _Number] = {}
    for protocol, results in of.items():
        for model, numbers in results.models.items():
            if numbers.epoch is not None:
                what = Quantity("epoch", "count")
                group, text = f"{protocol}{model}", what.text(numbers.epoch)
                by_label[f"{group} epoch"] = _Number(numbers.epoch, what, protocol, group, text)
            for split in ("test", "train"):
                values = getattr(numbers, split)
                for name, value in values.items():
                    base, error = is_error_of(name), values.get(f"{name}_stderr")
                    what = quantity(base or name, results.numbers)
                    group, label = f"{protocol}{model} {split}", what.label + (", standard error" if base else "")
                    by_label[f"{group} {label}"] = _Number(
                        value, what, protocol, group, what.text(value, error), error=bool(base)
                    )
    return by_label


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _differs(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)
