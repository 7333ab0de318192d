"""What the shell may complete, without importing torch; where something is wrong it completes nothing, in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path

import typer

from hookflat.errors import UserError

Answer = list[tuple[str, str]]
"""Words with their help."""


def _quiet(function: Callable[..., Iterable[tuple[str, str]]]) -> Callable[[typer.Context, str], Answer]:
    """An error in a completion would be written into the line that is being typed."""

    @wraps(function)
    def complete(ctx: typer.Context, incomplete: str) -> Answer:
        try:
            return [(word, text) for word, text in function(ctx, incomplete) if word.startswith(incomplete)]
        except (UserError, OSError, ValueError, SyntaxError):
            return []

    del complete.__wrapped__  # typer reads the signature
    return complete


def _files(incomplete: str) -> Iterable[tuple[str, str]]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        shown = str(path) if not incomplete.startswith("./") else f"./{path}"
        if path.suffix == ".toml" or (path.is_dir() and not path.name.startswith(".")):
            yield shown + ("/" if path.is_dir() else ""), ""


def _shipped(inside: str = "") -> Iterable[tuple[str, str]]:
    from hookflat.recipe.shipped import recipe_folders, title

    for _, folder in recipe_folders():
        for path in sorted((folder / inside).rglob("*.toml")):
            yield str(path.relative_to(folder / inside).with_suffix("")), title(path)


@_quiet
def recipe_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Recipes that ship, and TOML files here."""
    yield from (pair for pair in _shipped() if not pair[0].startswith(("protocols/", "studies/")))
    yield from _files(incomplete)


@_quiet
def shipped_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Recipes that ship."""
    return _shipped()


@_quiet
def study_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Studies that ship, and TOML files here."""
    yield from _shipped("studies")
    yield from _files(incomplete)


@_quiet
def protocol_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Protocols that ship, and TOML files here."""
    yield from _shipped("protocols")
    yield from _files(incomplete)


@_quiet
def plugin_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Installed plugins."""
    from hookflat.recipe.outline import installed

    return ((name, "") for name in installed())


@_quiet
def measure_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Installed plugins that measure."""
    from hookflat.recipe.outline import installed, outline

    return ((name, "") for name in installed() if "measure" in outline(name)[1])


@_quiet
def network_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """Plugins that build a network."""
    from hookflat.recipe.outline import names_for

    return ((name, "") for name in names_for("model"))


@_quiet
def option_names(ctx: typer.Context, incomplete: str) -> Iterable[tuple[str, str]]:
    """table.key= of the recipe, or the plugins for table.name=."""
    from hookflat.recipe.outline import installed, keys, names_for, outline

    key, equals, _ = incomplete.partition("=")
    if equals:
        table, _, option = key.rpartition(".")
        return ((f"{key}={name}", "") for name in (names_for(table) if option == "name" else ()))
    said = ctx.params.get("recipe") or ctx.params.get("model") or next(iter(ctx.args), "at")  # before an open option
    recipe = Path(said, "recipe.toml") if Path(said).is_dir() else said if ctx.info_name in ("run", "show") else "at"
    known = keys(str(recipe), [str(overlay) for overlay in ctx.params.get("with_") or ()])
    if key.startswith("plugins."):
        hooks = {"gradients", "criterion", "extra_loss", "transform_batch", "after_step", "epoch_end"}
        others = [name for name in installed() if outline(name)[1].keys() & hooks]
        known = {f"plugins.{name}.{o}": t for name in others for o, t in outline(name)[0].items()} | known
    return ((f"{name}=", text) for name, text in sorted(known.items()))
