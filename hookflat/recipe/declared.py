"""The options of a plugin as its source declares them: importing it takes seconds where it needs torch."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path

_DEEPEST = 10
"""Modules through which a class is followed."""
_PLAIN = (ast.AnnAssign, ast.Assign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Expr, ast.Pass)
"""What a class may hold whose fields are all told by their annotations."""


def declared_options(module: str, name: str, depth: int = 0) -> list[str] | None:
    """The options of the dataclass `name` of a module, of which nothing is run.

    None where its source does not say them all: a decorator beside @dataclass, a metaclass, a base that is not found.
    """
    package, tree = _source(module)
    for node in tree.body if depth < _DEEPEST else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _fields(node, module, depth)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    there = resolve_name("." * node.level + (node.module or ""), package)
                    return declared_options(there, alias.name, depth + 1)
    return None


def _fields(node: ast.ClassDef, module: str, depth: int) -> list[str] | None:
    decorators = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    if [d.rpartition(".")[2] for d in decorators] != ["dataclass"] or node.keywords:
        return None
    if not all(isinstance(item, _PLAIN) for item in node.body):
        return None
    found: list[str] = []
    for base in node.bases:
        inherited = declared_options(module, ast.unparse(base), depth + 1)
        if inherited is None:
            return None
        found += inherited
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            constant = "ClassVar" in ast.unparse(item.annotation).partition("[")[0]
            found += [] if constant else [item.target.id]
    return found


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
