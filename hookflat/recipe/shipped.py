"""Finding recipes by name: hookflat's own, and those that other packages ship."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.entry_points import installed
from hookflat.recipe.nearest import nearest
from hookflat.recipe.toml import read_toml
from hookflat.terminal import clipped, shortened


def recipes_folder() -> Path:
    """The folder of the shipped recipes: beside the package in a clone, inside it in a wheel."""
    beside = Path(__file__).parents[2] / "recipes"
    return beside if (beside / "at.toml").is_file() else Path(str(importlib.resources.files("hookflat") / "recipes"))


@cache
def recipe_folders() -> tuple[tuple[str, Path], ...]:
    """(package, folder) of shipped recipes: hookflat's, and those of the entry points `hookflat.recipes`.

    Such an entry point names a package (a folder) whose TOML files are the recipes; it is looked up, not imported. One
    that names none has no recipes.
    """
    folders = [("hookflat", recipes_folder())]
    for point, package in installed("hookflat.recipes"):
        top, *inner = point.value.split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            continue
        for place in (spec.submodule_search_locations if spec else None) or []:
            folders.append((package.partition(" ")[0], Path(place, *inner)))
    return tuple(folders)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a NUL
        return False


def title(recipe: Path) -> str:
    """The first line of a recipe, which says what it is."""
    first, _, _ = recipe.read_text(encoding="utf-8", errors="replace").partition("\n")
    return first.lstrip("# ")


def needs(recipe: Path) -> str:
    """What a scale needs (download, GPU, hours), as it says after "Needs:"; "" where it says nothing."""
    lines = recipe.read_text(encoding="utf-8", errors="replace").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    match = re.search(r"Needs: (.+?)\.(?= [A-Z]|$)", comment)
    return match[1] if match else ""


def recipes_naming(plugin: str) -> list[Path]:
    """Shipped recipes whose own tables name a plugin, scales aside."""
    return [path for _, folder in recipe_folders() for path in sorted(folder.glob("*.toml")) if plugin in _named(path)]


def _named(recipe: Path) -> set[str]:
    """Every plugin that a recipe names: of slots, of `[plugins]` and of evaluation stages; none where it is damaged."""
    try:
        tables, _ = read_toml(recipe)
    except UserError:
        return set()
    names = {t["name"] for t in tables.values() if isinstance(t, dict) and isinstance(t.get("name"), str)}
    inner: dict[str, dict[str, Any]] = {k: v for k, v in tables.items() if isinstance(v, dict)}
    stages = [stage for stage in inner.get("eval", {}).values() if isinstance(stage, dict)]
    return names.union(inner.get("plugins", {}), *stages)


def find_shipped(name: str) -> Path:
    """A recipe that comes with a package, by name: "trades", "scales/cifar10".

    Raises LookupError where none is, UserError where two packages have it.
    """
    given = name.removesuffix(".toml") + ".toml"
    folders = recipe_folders()
    for inside in (given, given.removeprefix("recipes/")):
        there = {package: folder / inside for package, folder in folders if is_file(folder / inside)}
        if len(there) > 1:
            told = " and ".join(f"{package} ({file})" for package, file in there.items())
            raise UserError(f"recipe {clipped(inside.removesuffix('.toml'))!r} is of {told}: give the file")
        if there:
            return next(iter(there.values()))
    known = [str(p.relative_to(f).with_suffix("")) for _, f in folders for p in f.rglob("*.toml")]
    given = clipped(given.removeprefix("recipes/")[:-5])
    known = [name for name in known if given.startswith("studies/") or not name.startswith("studies/")]
    raise LookupError(f"neither a file nor a shipped recipe{nearest(given, known)}")


def find_recipe(name: str | Path) -> Path:
    """A file, or a shipped recipe by name ("trades", "recipes/trades.toml", "scales/cifar10")."""
    if is_file(Path(name)):
        return Path(name)
    if is_file(Path(name) / "recipe.toml"):
        raise UserError(f"{clipped(str(name))} is a run's folder: its recipe is {clipped(str(name))}/recipe.toml")
    try:
        return find_shipped(str(name))
    except LookupError as error:
        if any((folder / "studies" / f"{name}.toml").is_file() for _, folder in recipe_folders()):
            raise UserError(f"{name} is a study of many runs: hookflat study {name}") from None
        raise UserError(f"no recipe {clipped(str(name))}: {error}") from None


def find_protocol(name: str | Path) -> Path:
    """A TOML file, or a shipped protocol by its name. Raises UserError where there is none."""
    if Path(name).suffix == ".toml" and is_file(Path(name)):
        return Path(name)
    try:
        return find_recipe(f"protocols/{name}")
    except UserError:
        known = sorted({p.stem for _, folder in recipe_folders() for p in (folder / "protocols").glob("*.toml")})
        raise UserError(
            f"no protocol {shortened(str(name))}: there are {', '.join(known)}, or give a TOML file"
        ) from None


def with_bases(recipe: Path) -> list[Path]:
    """A recipe's file, and the files beside it that it extends, each once; shipped ones are found by their names."""
    files = [recipe]
    for path in files:  # which grows
        bases = read_toml(path)[0].get("extends", [])
        for base in [bases] if isinstance(bases, str) else bases:
            beside = path.parent / base
            if beside.is_file() and not any(beside.samefile(known) for known in files):
                files.append(beside)
    return files
