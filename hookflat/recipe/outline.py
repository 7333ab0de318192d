"""What plugins are, read from their source without running it: for shell completion, which must answer at once."""

from __future__ import annotations

import ast
import importlib.util
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hookflat.recipe.catalogue import HOOKS, SLOTS
from hookflat.recipe.merging import Merged
from hookflat.recipe.shipped import find_recipe

_TABLES = {"run": "RunOptions", "eval": "EvalOptions"}
"""Tables to the class of their options in recipe.py."""


Outline = tuple[dict[str, str], dict[str, bool]]
"""Options with their descriptions; hooks, each with whether it is a wrapper."""


def installed() -> list[str]:
    """Every installed plugin."""
    return sorted({point.name for point in entry_points(group="hookflat")})


@cache
def outline(plugin: str) -> Outline:
    """Of an installed plugin; empty where its source is not at hand."""
    for point in entry_points(group="hookflat", name=plugin):
        module, _, cls = point.value.partition(":")
        with suppress(ImportError, OSError, ValueError, SyntaxError, AttributeError, RecursionError):
            spec = importlib.util.find_spec(module)
            if spec and spec.origin:
                return _of_class(Path(spec.origin), cls)
    return {}, {}


def names_for(table: str) -> list[str]:
    """The installed plugins that may stand in a slot, by its hook; all where the table is no slot."""
    hook = SLOTS.get(table)
    return [name for name in installed() if hook is None or outline(name)[1].get(hook) is False]


def keys(recipe: str, overlays: list[str]) -> dict[str, str]:
    """Dotted keys that `--set` may change in a recipe, each with what it means where that is known."""
    merged = Merged()
    for file in (recipe, *overlays):
        merged.add_file(find_recipe(file))
    described = dict.fromkeys(_dotted(merged.tables), "")
    for table, cls in _TABLES.items():
        options = _of_class(Path(__file__).with_name("recipe.py"), cls)[0]
        described |= {f"{table}.{option}": text for option, text in options.items()}
    places = {table["name"]: slot for slot, table in merged.tables.items() if slot in SLOTS and "name" in table}
    places |= {name: f"plugins.{name}" for name in merged.tables.get("plugins", {})}
    for name, place in places.items():
        described |= {f"{place}.{option}": text for option, text in outline(name)[0].items()}
    return described


def _dotted(tables: dict[str, Any], at: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tables.items():
        keys += _dotted(value, f"{at}{key}.") if isinstance(value, dict) else [at + key]
    return keys


@cache
def _of_class(file: Path, name: str) -> Outline:
    """Of a class in a file, with what it inherits from classes of the same file and of those it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    cls = next((n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        imported = _imported(tree, file, name)
        return _of_class(imported, name) if imported else ({}, {})
    options: dict[str, str] = {}
    hooks: dict[str, bool] = {}
    for base in cls.bases:
        inherited = _of_class(file, base.id) if isinstance(base, ast.Name) else ({}, {})
        options |= inherited[0]
        hooks |= inherited[1]
    for part in cls.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if "ClassVar" not in ast.unparse(part.annotation) and not part.target.id.startswith("_"):
                options[part.target.id] = _description(part.annotation)
        elif isinstance(part, ast.FunctionDef) and part.name in HOOKS:
            hooks[part.name] = "wrapper=True" in "".join(map(ast.unparse, part.decorator_list))
    return options, hooks


def _imported(tree: ast.Module, file: Path, name: str) -> Path | None:
    """The file of the module that a name is imported from; hookflat's own names are listed in its stub."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            if node.module == "hookflat":
                return Path(__file__).parents[1] / "__init__.pyi"
            if node.level:
                place = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                return place.with_suffix(".py") if place.with_suffix(".py").is_file() else None
            spec = importlib.util.find_spec(node.module or "")
            return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    return None


def _description(annotation: ast.expr) -> str:
    """The text in `Annotated[..., Field(description="...")]`."""
    texts = (
        k.value
        for call in ast.walk(annotation)
        if isinstance(call, ast.Call)
        for k in call.keywords
        if k.arg == "description"
    )
    return next((str(text.value) for text in texts if isinstance(text, ast.Constant)), "")
