"""Recipe files and overrides, one over the other; every value remembers where it came from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.catalogue import SLOTS
from hookflat.recipe.shipped import find_shipped
from hookflat.recipe.tables import Place


class Merged:
    """The tables so far, and the origin ("file:line" or "--set key") of every table and value."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.origins: dict[Place, str] = {}

    def add_file(self, file: Path, ancestors: tuple[Path, ...] = ()) -> None:
        """What `file` extends, then `file` itself. Raises UserError when one cannot be read."""
        if file.resolve() in ancestors:
            chain = " -> ".join(p.name for p in (*ancestors, file))
            raise UserError(f"{file}: recipes extend each other in a circle: {chain}")
        try:
            text = file.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            place = f"{file}:{line[1]}" if line else str(file)
            raise UserError(f"{place}: not valid TOML (is text in quotes?): {error}") from error
        lines = _lines(text)
        bases = tables.pop("extends", [])
        if not isinstance(bases, str) and not (isinstance(bases, list) and all(isinstance(b, str) for b in bases)):
            raise UserError(
                f"{file}:{lines.get(('extends',), 1)}: extends should be a recipe or a list of them, in quotes"
            )
        for base in [bases] if isinstance(bases, str) else bases:
            try:
                below = file.parent / base
                self.add_file(below if below.is_file() else find_shipped(base), (*ancestors, file.resolve()))
            except LookupError as error:
                raise UserError(f"{file}:{lines.get(('extends',), 1)}: extends {base!r}, which is {error}") from None
        self._merge(tables, (), lambda path: f"{file}:{_line_of(path, lines)}")

    def add_tables(self, tables: dict[str, Any]) -> None:
        """Tables that come from no file."""
        self._merge(tables, (), lambda _: "recipe")

    def add_value(self, key: str, value: Any) -> None:
        """One value by its dotted key, as `--set` gives it."""
        path = tuple(key.split("."))
        table: Any = value
        for part in reversed(path):
            table = {part: table}
        self._merge(table, (), lambda _: f"--set {key}")

    def _merge(self, new: dict[str, Any], at: Place, origin: Any) -> None:
        table = self.tables
        for part in at:
            table = table[part]
        for key, value in new.items():
            path = (*at, key)
            if isinstance(value, dict):
                inner = {k: v for k, v in value.items() if k != "if_used"}
                if value.get("if_used") is True and key not in table:
                    continue
                self._enter(table, path, inner)
                self.origins[path] = origin(path)
                self._merge(inner, path, origin)
            else:
                table[key] = value
                self.origins[path] = origin(path)

    def _enter(self, table: dict[str, Any], path: Place, new: dict[str, Any]) -> None:
        """Make room for a table; a slot that changes its plugin drops the old plugin's options."""
        old = table.get(path[-1])
        renamed = path[0] in SLOTS and len(path) == 1 and isinstance(old, dict) and "name" in new
        if not isinstance(old, dict) or (renamed and new["name"] != old.get("name")):
            table[path[-1]] = {}
            self.origins = {p: o for p, o in self.origins.items() if p[: len(path)] != path}


_HEADER = re.compile(r"^\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}")
_KEY = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _lines(text: str) -> dict[Place, int]:
    """Path of every table and key to its line."""
    found: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def _parts(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _line_of(path: Place, lines: dict[Place, int]) -> int:
    """The line of a path, or of the nearest table around it."""
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of a `--set`; what is not TOML is a string. Raises UserError where there is no "="."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: write it as table.key=value, for example loss.beta=3")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
