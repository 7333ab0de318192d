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
    """A name and each run's value, None where it has none; `texts`: as a table shows them."""

    name: str
    values: list[Any]
    texts: list[str]


def compare(folders: Sequence[Path]) -> tuple[list[Row], list[Row], list[str]]:
    """(recipe rows, number rows): only what differs; and the results that are damaged, which are left out.

    The first of the number rows say under which threats the others were measured, where these differ. Raises UserError
    for a folder that is no run's, and a damaged recipe.
    """
    damaged: list[str] = []
    recipes = [dict(flat(RunFolder(folder).read_recipe())) for folder in folders]
    results = [_results(RunFolder(folder), damaged) for folder in folders]
    threats = [{f"{part}threat": r.protocol.threat for part, r in of.items()} for of in results]
    found = [_numbers(of) for of in results]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    lines = [(".".join(key), [recipe.get(key) for recipe in recipes]) for key in keys]
    names = dict.fromkeys(name for numbers in found for name in numbers)
    rows = []
    for name in dict.fromkeys(name for of in threats for name in of):
        said = [of.get(name) for of in threats]
        if len({*said} - {None}) > 1:
            rows.append(Row(name, said, [text or "-" for text in said]))
    for name in names:
        pairs = [numbers.get(name) for numbers in found]
        texts = ["-" if p is None else p[1].text(p[0]) for p in pairs]
        rows.append(Row(name, [None if p is None else p[0] for p in pairs], texts))
    recipe_rows = [Row(name, values, [_text(v) for v in values]) for name, values in lines]
    lines_that_differ, numbers_that_differ = (
        [row for row in part if _differs(row.values)] for part in (recipe_rows, rows)
    )
    return lines_that_differ, numbers_that_differ, damaged


def _results(folder: RunFolder, damaged: list[str]) -> dict[str, Results]:
    """A run's own, under "", and those of `hookflat eval` under the names of their folders and a space."""
    found: dict[str, Results] = {}
    for place in (folder, *folder.evaluations()):
        try:
            results = place.read_results()
        except DamagedError as error:
            damaged.append(str(error))
            continue
        if results is not None:
            found["" if place is folder else f"{place.path.name} "] = results
    return found


def _numbers(of: dict[str, Results]) -> dict[str, tuple[float, Quantity]]:
    """Every measured number of a run by what it is, "last test RLoss", of its own measures and of `hookflat eval`'s."""
    found: dict[str, tuple[float, Quantity]] = {}
    for protocol, results in of.items():
        for model, numbers in results.models.items():
            if numbers.epoch is not None:
                found[f"{protocol}{model} epoch"] = (numbers.epoch, Quantity("epoch", "count"))
            for split in ("test", "train"):
                for name, value in getattr(numbers, split).items():
                    base = is_error_of(name)
                    what = quantity(base or name, results.numbers)
                    label = f"{protocol}{model} {split} {what.label}" + (", standard error" if base else "")
                    found[label] = (value, what)
    return found


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _differs(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)
