"""Beginnings: a first recipe, and a plugin's package that passes its own tests, from the templates that ship."""

from __future__ import annotations

import errno
import importlib.resources
import keyword
import re
from pathlib import Path

from hookflat.errors import UserError
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.shipped import recipe_folders

KINDS = {
    "loss": "loss",
    "measure": "measure",
    "weight-perturbation": "weight perturbation",
    "regularizer": "regularizer",
    "data": "data set",
    "model": "network",
}
"""The kinds of plugins that there are templates for, each with what a text calls it."""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")


def templates_folder() -> Path:
    """The folder of the templates: beside the package in a clone, inside it in a wheel."""
    beside = Path(__file__).parents[2] / "templates"
    return (
        beside if (beside / "recipe.toml").is_file() else Path(str(importlib.resources.files("hookflat") / "templates"))
    )


def new_recipe(file: Path) -> None:
    """Write a first recipe with comments. Raises UserError where the file exists, or does not end in .toml."""
    if file.suffix != ".toml":
        raise UserError(f"{file}: a recipe's name ends in .toml")
    if file.exists():
        raise UserError(f"{file} exists already: choose another name")
    text = (templates_folder() / "recipe.toml").read_text(encoding="utf-8")
    _written({file: text.replace("template_name", file.stem)})


def new_plugin(name: str, kind: str, folder: Path | None = None) -> Path:
    """Write the package `hookflat-NAME` of a plugin of one of the `KINDS`; returns its folder.

    `folder`: of the package, instead of `hookflat-NAME` here. Raises UserError for a name that cannot be a plugin's or
    is one's already, and a folder that exists.
    """
    name = name.replace("-", "_").removeprefix("hookflat_")
    known = {*Catalogue().names(), *(file.stem for _, home in recipe_folders() for file in home.glob("*.toml"))}
    if not _NAME.fullmatch(name) or len(name) > 30 or keyword.iskeyword(name):
        raise UserError(
            f"{name!r}: a plugin's name is at most 30 of a-z, 0-9 and _, each part begins with a letter, and it is no "
            "word of Python's own"
        )
    if name in known or f"hookflat_{name}" == "hookflat_plugins":
        raise UserError(f"a plugin or a recipe is called {name!r} already: choose another name")
    place = folder or Path(f"hookflat-{name.replace('_', '-')}")
    if place.exists():
        raise UserError(f"{place} exists already: choose another folder with --out")
    spelt = {
        "template_name": name,
        "TemplateName": name.title().replace("_", ""),
        "template-name": name.replace("_", "-"),
        "template kind": KINDS[kind],
    }
    files = {}
    for part in (templates_folder() / "package", templates_folder() / kind):
        for file in (f for f in sorted(part.rglob("*")) if f.is_file() and f.suffix != ".pyc"):
            text = file.read_text(encoding="utf-8")
            if re.search(rf"\b{spelt['TemplateName']}\b", text):
                raise UserError(
                    f"{name!r}: its class {spelt['TemplateName']} would hide another name: choose another name"
                )
            files[place / _spelt(file.relative_to(part).as_posix(), spelt)] = _spelt(text, spelt)
    _written(files)
    return place


def _spelt(text: str, words: dict[str, str]) -> str:
    for template, word in words.items():
        text = text.replace(template, word)
    return text


def _written(files: dict[Path, str]) -> None:
    for file, text in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # no other name would help
                error.filename = error.filename or str(file)
                raise
            raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
