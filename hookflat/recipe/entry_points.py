"""Entry points of installed packages, of which a broken one is nobody's but its own package's."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import Distribution, EntryPoint, distributions


def installed(group: str) -> list[tuple[EntryPoint, str]]:
    """The entry points of a group, each with its package, "name version"; of two installs of one the first.

    A package whose metadata cannot be read has none.
    """
    by_package: dict[str, list[tuple[EntryPoint, str]]] = {}
    for package in distributions():
        with suppress(Exception):  # files of others, read by Python's own parser, which raises what it likes
            if points := package.entry_points.select(group=group):
                name, version = _name_and_version(package)
                by_package.setdefault(name, [(point, f"{name} {version}") for point in points])
    return [pair for pairs in by_package.values() for pair in pairs]


def _name_and_version(package: Distribution) -> tuple[str, str]:
    try:
        return package.name, package.version
    except Exception:
        return "?", "?"
