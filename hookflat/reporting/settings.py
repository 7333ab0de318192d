"""What makes runs of one method different configurations: the options in which their recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hookflat.recipe.tables import flat

Setting = tuple[tuple[str, Any], ...]
"""Options by dotted name, None where a recipe has no such option; a plugin that some lack: whether it is there."""

_BOOKKEEPING = ("run.seed", "run.threads", "run.folder", "run.checkpoint_steps", "eval.", "track.", "plugins.figures")
"""What does not make a run another configuration."""

_STOPPING = "plugins.early_stopping."


def options_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe that make a configuration, by dotted name."""
    options = {".".join(path): _hashable(value) for path, value in flat(recipe)}
    return {name: value for name, value in options.items() if not name.startswith(_BOOKKEEPING)}


def plain(value: Any) -> str:
    """A value of an option, as a name shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else str(value) if isinstance(value, dict) else value


def settings(tables: Sequence[dict[str, Any]]) -> list[Setting]:
    """The options in which recipes differ; of a plugin that some lack, whether it is there and how those differ."""
    tables = without_alike_stopping(tables)
    plugins = [{_plugin(name) for name in table} for table in tables]
    differing: list[str] = []
    for name in dict.fromkeys(name for table in tables for name in table):
        having = [table for table, there in zip(tables, plugins, strict=True) if _plugin(name) in there]
        if not _plugin(name):
            having = tables
        elif len(having) < len(tables) and _plugin(name) not in differing:
            differing.append(_plugin(name))
        if len({table.get(name) for table in having}) > 1:
            differing.append(name)
    return [
        tuple((name, name in there if _is_plugin(name) else table.get(name)) for name in differing)
        for table, there in zip(tables, plugins, strict=True)
    ]


def _plugin(name: str) -> str:
    """The table "plugins.NAME" that an option belongs to; "" for another's."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "plugins" and len(parts) > 2 else ""


def _is_plugin(name: str) -> bool:
    """Whether it is a plugin's table, not an option."""
    return name == _plugin(f"{name}.")


def without_alike_stopping(tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Options without those of early stopping, where all that stop early do it alike, and on test images.

    It picks networks of a training that would be the same without it.
    """
    stops = {tuple((k, v) for k, v in table.items() if k.startswith(_STOPPING)) for table in tables} - {()}
    if len(stops) != 1 or (f"{_STOPPING}source", "train") in next(iter(stops)):
        return list(tables)
    return [{k: v for k, v in table.items() if not k.startswith(_STOPPING)} for table in tables]


def spelled(setting: Setting, sign: str) -> list[str]:
    """A setting, "xi=0.01" by the sign "="; a plugin that others lack is named where none of its options is."""
    shown = {_plugin(name) for name, value in setting if value is not None}
    words = []
    for name, value in setting:
        last = name.split(".")[-1]
        if _is_plugin(name):
            words += [] if value and name in shown else [f"{'with' if value else 'without'} {last}"]
        elif value is not None:
            words.append(f"{last}{sign}{plain(value)}")
    return words
