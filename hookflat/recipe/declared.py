"""The options of a plugin as its source declares them: importing it takes seconds where it needs torch."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

_DEEPEST = 10
"""Modules through which a class is followed."""
_PLAIN = (ast.AnnAssign, ast.Assign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Expr, ast.Pass)
"""What a class may hold whose fields are all told by their annotations."""


def declared_options(module: str, name: str, depth: int = 0) -> dict[str, Any] | None:
    """The options of the dataclass `name` of a module, which is not imported, each with its type.

    Annotations alone are evaluated, with what is loaded already. The type is `Any` where only an import would tell it.
    None where the source does not say all: a decorator beside @dataclass, a metaclass, a base that is not found.
    """
    _, tree = _source(module)
    for node in tree.body if depth < _DEEPEST else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _fields(node, module, depth)
    there = _imported(module, name) if depth < _DEEPEST else None
    return declared_options(*there, depth + 1) if there else None


def _fields(node: ast.ClassDef, module: str, depth: int) -> dict[str, Any] | None:
    decorators = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    if [d.rpartition(".")[2] for d in decorators] != ["dataclass"] or node.keywords:
        return None
    if not all(isinstance(item, _PLAIN) for item in node.body):
        return None
    fields: dict[str, Any] = {}
    for base in node.bases:
        inherited = declared_options(module, ast.unparse(base), depth + 1)
        if inherited is None:
            return None
        fields |= inherited
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            constant = "ClassVar" in ast.unparse(item.annotation).partition("[")[0]
            fields |= {} if constant else {item.target.id: _type(item.annotation, module)}
    return fields


def _type(annotation: ast.expr, module: str) -> Any:
    """What an annotation means in a module; `Any` where that takes an import of it."""
    try:
        meant = eval(compile(ast.Expression(annotation), module, "eval"), {}, _Names(module))
    except Exception:  # told with the class
        return Any
    return Any if isinstance(meant, str) else meant


class _Names(dict[str, Any]):
    """The names of a module: those of modules that are loaded, and what others assign to them in their source."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        loaded = sys.modules.get(self.module)
        if loaded is not None and name in vars(loaded):
            return vars(loaded)[name]
        for node in _source(self.module)[1].body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                return _type(node.value, self.module)
        if there := _imported(self.module, name):
            return _Names(there[0])[there[1]]
        raise KeyError(name)  # a builtin one, perhaps


def _imported(module: str, name: str) -> tuple[str, str] | None:
    """The module that a module imports `name` from, and what it is called there."""
    package, tree = _source(module)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return resolve_name("." * node.level + (node.module or ""), package), alias.name
    return None


@cache
def _source(module: str) -> tuple[str, ast.Module]:
    """A module's package, and its text, or that of its stub, which names what is imported when it is first used."""
    spec = _spec(module)
    if spec is not None and spec.origin is not None:
        stub = Path(spec.origin).with_suffix(".pyi")
        try:
            text = (stub if stub.is_file() else Path(spec.origin)).read_text(encoding="utf-8")
            return spec.parent or "", ast.parse(text)
        except (OSError, ValueError, SyntaxError, MemoryError, RecursionError):
            pass  # what is wrong with it is told when it is imported
    return "", ast.Module([], [])


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; the packages around it are not imported."""
    spec, place = None, None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        spec = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, place))), None)
        if spec is None:
            return None
        place = spec.submodule_search_locations
    return spec
