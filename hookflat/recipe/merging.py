"""Recipe files and overrides, one over the other; every value remembers where it came from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.catalogue import SLOTS
from hookflat.recipe.shipped import find_shipped, is_file
from hookflat.recipe.tables import NORMS, RADII, THREAT_OPTIONS, Place, is_by_norm, norm_of
from hookflat.recipe.toml import DEEPEST, LONGEST_NAME, out_of_bounds, parsed, read_toml
from hookflat.terminal import clipped, shortened

MOST_FILES = 100
"""That one recipe may extend, theirs counted; five are many."""


class Merged:
    """The tables so far, and the origin ("file:line" or "--set key") of every table and value.

    `norms`: of a radius or a step, the norm that its file, or `--set` as a whole, left when it was written. `threat`:
    what `[attack]` has from the plugin before it, and nobody has said since.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.origins: dict[Place, str] = {}
        self.norms: dict[Place, str] = {}
        self.threat: set[Place] = set()
        self.files = 0
        self._laid: set[Path] = set()

    def add_file(self, file: Path, ancestors: tuple[Path, ...] = ()) -> None:
        """What `file` extends, then `file` itself. Raises UserError when one cannot be read.

        What several extend is laid once, where it first comes: laid again it would undo what is between.
        """
        if file.resolve() in ancestors:
            chain = " -> ".join(p.name for p in (*ancestors, file))
            raise UserError(f"{file}: recipes extend each other in a circle: {chain}")
        self.files += 1
        if self.files > MOST_FILES:
            raise UserError(f"{file}: the recipe extends more than {MOST_FILES} files")
        tables, text = read_toml(file)
        if not tables and self.files > 1:
            raise UserError(f"{file}:1: it is empty: no table and no option is in it")
        lines = _lines(text)
        bases = tables.pop("extends", [])
        if not isinstance(bases, str) and not (isinstance(bases, list) and all(isinstance(b, str) for b in bases)):
            raise UserError(
                f"{file}:{lines.get(('extends',), 1)}: extends should be a recipe or a list of them, in quotes"
            )
        for base in [bases] if isinstance(bases, str) else bases:
            try:
                below = file.parent / base
                below = below if is_file(below) else find_shipped(base)
            except LookupError as error:
                told = f"extends {shortened(base)}, which is {error}"
                raise UserError(f"{file}:{lines.get(('extends',), 1)}: {told}") from None
            if below.resolve() not in self._laid:
                self.add_file(below, (*ancestors, file.resolve()))
        self._laid.add(file.resolve())
        self._merge(tables, (), lambda path: f"{file}:{_line_of(path, lines)}")
        self._note_norms()
        if not ancestors:
            self.origins.setdefault((), f"{file}:1")  # of what is nowhere

    def add_tables(self, tables: dict[str, Any], origin: str) -> None:
        """Tables that were read elsewhere; messages say that they are from `origin`."""
        self._merge(tables, (), lambda _: origin)
        self._note_norms()

    def add_values(self, values: Iterable[tuple[str, Any]]) -> None:
        """Values by their dotted keys, as `--set` gives them; a slot's plugin before its options, in any order."""
        slots = [f"{slot}.name" for slot in SLOTS]
        for key, value in sorted(_by_norm(values), key=lambda pair: pair[0] not in slots):
            table: Any = value
            for part in reversed(key.split(".")):
                table = {part: table}
            self._merge(table, (), lambda _, key=key: f"--set {clipped(key)}")
        self._note_norms()

    def _merge(self, new: dict[str, Any], at: Place, origin: Any) -> None:
        """Every value of a recipe comes through here."""
        if len(at) > DEEPEST:
            raise UserError(f"{origin(at)}: {_name(at)}: tables are nested more than {DEEPEST} deep")
        table = self.tables
        for part in at:
            table = table[part]
        for key, value in new.items():
            path = (*at, key)
            if not isinstance(key, str) or len(key) > LONGEST_NAME or not key.isprintable():
                raise UserError(f"{origin(path)}: {_name(path)}: no table and no option is called so")
            is_table = isinstance(value, dict) and not is_by_norm(value)
            if not is_table and (why := out_of_bounds(value)):
                raise UserError(f"{origin(path)}: {_name(path)}: {why}")
            if is_table:
                conditions = ("if_used", "instead_of") if path in _SLOT_TABLES else ("if_used",)
                if not isinstance(value.get("instead_of", ""), str) and "instead_of" in conditions:
                    place = (*path, "instead_of")
                    raise UserError(f"{origin(place)}: {_name(place)}: should be the name of a plugin")
                inner = {k: v for k, v in value.items() if k not in conditions}
                if not _applies({k: value[k] for k in conditions if k in value}, inner, table.get(key)):
                    continue
                self._enter(table, path, inner)
                self.origins[path] = origin(path)
                self._merge(inner, path, origin)
            else:
                table[key] = value
                self.origins[path] = origin(path)
                self.norms.pop(path, None)
                self.threat.discard(path)

    def _note_norms(self) -> None:
        for place in RADII:
            table = self.tables.get(place[0])
            if isinstance(table, dict) and place[1] in table:
                self.norms.setdefault(place, norm_of(place[0], self.tables))

    def _enter(self, table: dict[str, Any], path: Place, new: dict[str, Any]) -> None:
        """Make room for a table; a slot that changes its plugin drops the old plugin's options, but for the threat."""
        old = table.get(path[-1])
        renamed = path[0] in SLOTS and len(path) == 1 and isinstance(old, dict) and "name" in new
        if not isinstance(old, dict) or (renamed and new["name"] != old.get("name")):
            kept = {k: v for k, v in old.items() if path == ("attack",) and k in THREAT_OPTIONS} if renamed else {}
            table[path[-1]] = kept
            self.threat |= {(*path, key) for key in kept}
            if old:
                self.origins, self.norms = (
                    {p: v for p, v in known.items() if p[: len(path)] != path or p in self.threat}
                    for known in (self.origins, self.norms)
                )


_SLOT_TABLES = {(slot,) for slot in SLOTS}


def _applies(conditions: dict[str, Any], new: dict[str, Any], old: Any) -> bool:
    """Whether a table is laid over what is there."""
    if conditions.get("if_used") is True and old is None:
        return False
    if "instead_of" not in conditions or not isinstance(old, dict):
        return True
    return old.get("name") in (None, conditions["instead_of"], new.get("name"))


_KEY = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _lines(text: str) -> dict[Place, int]:
    """Path of every table and key to its line; [a.b] is where `a` begins, unless there is an [a]."""
    written: dict[Place, int] = {}
    implied: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        inner, closed, _ = line.strip().lstrip("[").partition("]")
        if line.lstrip().startswith("[") and closed and inner:
            table = _parts(inner)
            written.setdefault(table, number)
            for length in range(1, min(len(table), DEEPEST + 2)):
                implied.setdefault(table[:length], number)
        elif key := _KEY.match(line):
            written.setdefault((*table, *_parts(key[1])), number)
    return implied | written


def _by_norm(values: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    """With attack.eps.Linf and attack.eps.L2 as one value of attack.eps."""
    joined: dict[str, Any] = {}
    for key, value in values:
        place, _, last = key.rpartition(".")
        if last in NORMS:
            others: Any = joined[place] if is_by_norm(joined.get(place)) else {}
            joined[place] = others | {last: value}
        else:
            joined[key] = value
    return joined.items()


def _parts(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _line_of(path: Place, lines: dict[Place, int]) -> int:
    """The line of a path, or of the nearest table around it."""
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)


def _name(path: Place) -> str:
    """A key as a message shows it."""
    parts = [clipped(str(part), 40) for part in path]
    return ".".join([*parts[:3], "...", parts[-1]] if len(parts) > 5 else parts)


def assignments(overrides: Iterable[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys and values of `--set`, or of a dict."""
    if isinstance(overrides, str):
        raise UserError(f'overrides: should be a dict or a list of "table.key=value", not the text {overrides!r}')
    return list(overrides.items()) if isinstance(overrides, Mapping) else [assignment(text) for text in overrides]


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of a `--set`; what is not TOML is a string. Raises UserError for what is no one line with "="."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UserError(f"--set {clipped(text)}: write it as table.key=value, for example loss.beta=3")
    if len(value.splitlines()) > 1 or not key.isprintable():
        raise UserError(f"--set {shortened(text)}: takes one value, in one line")
    try:
        return key, parsed(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value
    except ValueError as error:
        raise UserError(f"--set {clipped(key)}: {str(error).partition(' (')[0]}") from None
