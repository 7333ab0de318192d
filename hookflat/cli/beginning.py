"""Commands that begin something: a recipe, a plugin's package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hookflat.cli.app import Out, command, say

Kind = Literal["loss", "measure", "weight-perturbation", "regularizer", "data", "model"]


@command()
def init(file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.toml")) -> None:
    """Write a first recipe, with comments; it runs as it is."""
    from hookflat.recipe.scaffold import new_recipe

    new_recipe(file)
    say(f"{file} is written; hookflat run {file} trains and measures it")


@command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Of the plugin in recipes; the package is hookflat-NAME.")],
    kind: Annotated[Kind, typer.Option(help="What it is.", show_default=False)],
    out: Out = None,
) -> None:
    """Write a plugin's package: code, recipe, tests that pass, and what CI and pip need."""
    from hookflat.recipe.scaffold import new_plugin as written

    place = written(name, kind, out)
    say(f'{place} is written; next: cd {place} && pip install -e ".[test]" && pytest')
