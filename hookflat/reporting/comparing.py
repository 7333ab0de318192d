"""Runs side by side: the recipe lines and the numbers that differ."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.loading import flat

Row = tuple[str, list[Any]]


def compare(folders: Sequence[Path]) -> tuple[list[Row], list[Row]]:
    """(recipe rows, number rows): a name and each run's value, None where it has none; only what differs.

    Raises UserError for a folder that is no run's.
    """
    recipes = [dict(flat(_recipe(folder))) for folder in folders]
    numbers = [_numbers(folder) for folder in folders]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    lines = [(".".join(key), [recipe.get(key) for recipe in recipes]) for key in keys]
    names = dict.fromkeys(name for found in numbers for name in found)
    values = [(name, [found.get(name) for found in numbers]) for name in names]
    return [row for row in lines if _differs(row[1])], [row for row in values if _differs(row[1])]


def _recipe(folder: Path) -> dict[str, Any]:
    file = folder / "recipe.toml"
    if not file.is_file():
        raise UserError(f"{folder} is no run folder: it has no recipe.toml")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _numbers(folder: Path) -> dict[str, float]:
    """Every measured number of a run, "last test rloss", of its own measures and of `hookflat eval`'s protocols."""
    found: dict[str, float] = {}
    for file in (folder / "eval.json", *sorted(folder.glob("eval/*/eval.json"))):
        if not file.is_file():
            continue
        protocol = "" if file.parent == folder else f"{file.parent.name} "
        for model, entry in _models(file).items():
            if "epoch" in entry:
                found[f"{protocol}{model} epoch"] = entry["epoch"]
            for split in ("test", "train"):
                found |= {f"{protocol}{model} {split} {name}": v for name, v in entry.get(split, {}).items()}
    return found


def _models(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not what hookflat writes: {error}") from None


def _differs(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)
