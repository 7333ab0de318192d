"""Resolved recipes that are older than some of their options."""

from __future__ import annotations

from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.catalogue import SLOTS, Catalogue
from hookflat.recipe.options import default_table
from hookflat.recipe.recipe import EvalOptions, RunOptions, Stage
from hookflat.recipe.tables import flat


def with_defaults(tables: dict[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """A resolved recipe with what it lacks at its default, which is what was done before there was such an option."""
    done = {key: dict(table) if isinstance(table, dict) else table for key, table in tables.items()}
    for slot in SLOTS.keys() & done.keys():
        if isinstance(table := done[slot], dict):
            done[slot] = plugin_with_defaults(table.get("name"), table, catalogue)
    if isinstance(plugins := done.get("plugins"), dict):
        done["plugins"] = {name: plugin_with_defaults(name, table, catalogue) for name, table in plugins.items()}
    if isinstance(evaluation := done.get("eval"), dict):
        done["eval"] = _over(EvalOptions, {key: _stage(value, catalogue) for key, value in evaluation.items()})
    if "run" in done:
        done["run"] = _over(RunOptions, done["run"])
    return done


def plugin_with_defaults(name: Any, table: Any, catalogue: Catalogue) -> Any:
    """The same of a plugin's table; as it is where the plugin is not in the catalogue, or cannot be imported."""
    try:
        return _over(catalogue.find(str(name)).load(), table)
    except UserError:
        return table


def differences(there: dict[str, Any], here: dict[str, Any], catalogue: Catalogue) -> list[str]:
    """The values that differ between a folder's resolved recipe and this one, "key: 5 in the folder, 1 now"."""
    old, new = (dict(flat(tables)) for tables in (with_defaults(there, catalogue), here))
    return [
        f"{'.'.join(key)}: {old.get(key, 'nothing')} in the folder, {new.get(key, 'nothing')} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _stage(value: Any, catalogue: Catalogue) -> Any:
    """A stage of `[eval]` and its measures; other options of the table are no tables."""
    if not isinstance(value, dict):
        return value
    return _over(Stage, {name: plugin_with_defaults(name, table, catalogue) for name, table in value.items()})


def _over(cls: Any, table: Any) -> Any:
    """A table over the defaults of its dataclass; what it has comes first, its name above all."""
    return table | default_table(cls) | table if isinstance(table, dict) else table
