"""Finding recipes by name: hookflat's own, and those that other packages ship."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
import tomllib
from functools import cache
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.recipe.nearest import nearest


def recipes_folder() -> Path:
    """The folder of the shipped recipes: beside the package in a clone, inside it in a wheel."""
    beside = Path(__file__).parents[2] / "recipes"
    return beside if (beside / "at.toml").is_file() else Path(str(importlib.resources.files("hookflat") / "recipes"))


@cache
def recipe_folders() -> tuple[tuple[str, Path], ...]:
    """(package, folder) of shipped recipes: hookflat's, and those of the entry points `hookflat.recipes`.

    Such an entry point names a package (a folder) whose TOML files are the recipes; it is looked up, not imported.
    """
    folders = [("hookflat", recipes_folder())]
    for point in entry_points(group="hookflat.recipes"):
        top, *inner = point.value.split(".")
        spec = importlib.util.find_spec(top)
        for place in (spec.submodule_search_locations if spec else None) or []:
            folders.append((point.dist.name if point.dist else point.name, Path(place, *inner)))
    return tuple(folders)


def title(recipe: Path) -> str:
    """The first line of a recipe, which says what it is."""
    return recipe.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def needs(recipe: Path) -> str:
    """What a scale needs (download, GPU, hours), as it says after "Needs:"; "" where it says nothing."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    found = re.search(r"Needs: (.+?)\.(?= [A-Z]|$)", comment)
    return found[1] if found else ""


def recipes_naming(plugin: str) -> list[Path]:
    """Shipped recipes whose own tables name a plugin, scales aside."""
    return [
        path
        for _, folder in recipe_folders()
        for path in sorted(folder.glob("*.toml"))
        if plugin in _named(tomllib.loads(path.read_text(encoding="utf-8")))
    ]


def _named(tables: dict[str, Any]) -> set[str]:
    """Every plugin that tables name: of slots, of `[plugins]` and of evaluation stages."""
    found = {t["name"] for t in tables.values() if isinstance(t, dict) and isinstance(t.get("name"), str)}
    stages = [stage for stage in tables.get("eval", {}).values() if isinstance(stage, dict)]
    return found.union(tables.get("plugins", {}), *stages)


def find_shipped(name: str) -> Path:
    """A recipe that comes with a package, by name: "trades", "scales/cifar10". Raises LookupError where none is."""
    given = name.removesuffix(".toml") + ".toml"
    folders = recipe_folders()
    for inside in (given, given.removeprefix("recipes/")):
        for _, folder in folders:
            if (folder / inside).is_file():
                return folder / inside
    known = [str(p.relative_to(f).with_suffix("")) for _, f in folders for p in f.rglob("*.toml")]
    raise LookupError(f"neither a file nor a shipped recipe{nearest(given.removeprefix('recipes/')[:-5], known)}")


def find_recipe(name: str | Path) -> Path:
    """A file, or a shipped recipe by name ("trades", "recipes/trades.toml", "scales/cifar10")."""
    if Path(name).is_file():
        return Path(name)
    try:
        return find_shipped(str(name))
    except LookupError as error:
        raise UserError(f"no recipe {name}: {error}") from None


def find_protocol(name: str | Path) -> Path:
    """A TOML file, or a shipped protocol by its name. Raises UserError where there is none."""
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    try:
        return find_recipe(f"protocols/{name}")
    except UserError:
        known = sorted({p.stem for _, folder in recipe_folders() for p in (folder / "protocols").glob("*.toml")})
        raise UserError(f"no protocol {str(name)!r}: there are {', '.join(known)}, or give a TOML file") from None


def with_bases(recipe: Path) -> list[Path]:
    """A recipe's file, and the files beside it that it extends; shipped ones are found by their names."""
    bases = tomllib.loads(recipe.read_text(encoding="utf-8")).get("extends", [])
    found = [recipe]
    for base in [bases] if isinstance(bases, str) else bases:
        beside = recipe.parent / base
        found += with_bases(beside) if beside.is_file() else []
    return found
