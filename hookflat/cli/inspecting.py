"""Commands that show what there is."""

from __future__ import annotations

import inspect
import json as json_text
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hookflat.cli.app import (
    Json,
    Plugin,
    RecipeArgument,
    Set,
    With,
    command,
    print_json,
    say,
    say_head,
    say_table,
    warn,
)
from hookflat.cli.completing import plugin_names, shipped_names
from hookflat.errors import UserError

if TYPE_CHECKING:
    from hookflat.recipe.catalogue import PluginSource
    from hookflat.training.cost import Cost


@command()
def show(
    recipe: RecipeArgument,
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    cost: Annotated[bool, typer.Option("--cost", help="What a run costs here instead: a few steps are timed.")] = False,
    json: Json = False,
) -> None:
    """Print a resolved recipe, where each value came from, and the hooks in call order; or what a run of it costs."""
    from hookflat.recipe.catalogue import Catalogue
    from hookflat.recipe.loading import load_recipe
    from hookflat.recipe.tables import flat

    loaded = load_recipe(recipe, overlays=with_, overrides=set_, catalogue=Catalogue(plugin))
    from hookflat.training.core import Core  # loads torch
    from hookflat.training.hooks import ANSWERED_ONCE, Hooks

    if cost:
        from hookflat.training.cost import cost_of

        estimate = cost_of(loaded)
        if json:
            print_json(asdict(estimate) | {"hours": estimate.hours})
        else:
            say_cost(loaded.name, estimate)
        return
    order = Hooks(loaded.registered() | {"core": Core()}).order()
    if json:
        origins = {".".join(path): loaded.origin(path) for path, _ in flat(loaded.tables)}
        measures = {stage: list(table) for stage, table in loaded.measures.items()}
        facts = {"name": loaded.name, "folder": loaded.folder, "tables": loaded.tables, "origins": origins}
        print_json(facts | {"hooks": order, "measures": measures})
        return
    for path, table in _sections(loaded.tables):
        say_head(f"\n[{'.'.join(path)}]")
        for key, value in table.items():
            line = f"{key} = {json_text.dumps(value, ensure_ascii=False)}"
            say(f"{line:<44} # {loaded.origin((*path, key))}")
    say_head("\nhooks, in call order")
    for hook, names in order.items():
        around, answers = ([n for n in names if n.endswith(" (around)") == wraps] for wraps in (True, False))
        asked = ", else " if hook in ANSWERED_ONCE else ", "
        say(f"  {hook:<18} {', '.join(filter(None, [*around, asked.join(answers)]))}")
    say_head("measures")
    for stage, measures in loaded.measures.items():
        every = loaded.stages[stage].every
        say(f"  {stage:<18} {', '.join(measures)} ({'at the end' if every is None else f'every {every:g}'})")


@command()
def plugins(
    name: Annotated[
        str | None,
        typer.Argument(help="Show the options of this plugin.", show_default=False, autocompletion=plugin_names),
    ] = None,
    plugin: Plugin = [],  # noqa: B006
    json: Json = False,
) -> None:
    """List the installed plugins, or the options of one."""
    from hookflat.recipe.catalogue import Catalogue

    catalogue = Catalogue(plugin)
    if name is not None:
        _one_plugin(catalogue.find(name), json)
        return
    facts, broken = [], []
    for source in catalogue:
        try:
            facts.append(_facts(source, source.load()))
        except UserError as error:
            broken.append(str(error))
    if json:
        print_json(facts)
    else:
        say_table(("name", "kind", "what it does"), ((f["name"], f["kind"], _summary(f)) for f in facts))
        say("hookflat plugins NAME: its options, its hooks and its source")
    for message in broken:
        warn(f"hookflat: left out: {message}")


def _summary(facts: dict[str, Any]) -> str:
    """Of a plugin that is not hookflat's with its package."""
    own = facts["package"].startswith("hookflat ")
    return facts["summary"] if own else f"{facts['summary']} ({facts['package']})"


def _facts(source: PluginSource, cls: type) -> dict[str, Any]:
    from hookflat.recipe.catalogue import kind_of

    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    about = {"kind": kind_of(cls), "summary": summary, "paper": getattr(cls, "paper", "")}
    return {"name": source.name} | about | {"package": source.package}


def _one_plugin(source: PluginSource, json: bool) -> None:
    from hookflat.recipe.catalogue import hooks_of
    from hookflat.recipe.options import describe
    from hookflat.recipe.shipped import recipes_naming, title

    cls = source.load()
    facts, used = _facts(source, cls), recipes_naming(source.name)
    if json:
        options = [asdict(option) for option in describe(cls)]
        more = {"hooks": list(hooks_of(cls)), "recipes": [path.stem for path in used], "options": options}
        print_json(facts | more)
        return
    say_head(f"{source.name} ({facts['kind']}, {source.package})")
    say(inspect.getdoc(cls) or "")
    if facts["paper"]:
        say(f"source: {facts['paper']}")
    say(f"hooks: {', '.join(hooks_of(cls))}")
    for path in used:
        say(f"recipe {path.stem}: {title(path)}")
    say("")
    rows = ((option.name, option.type, option.default, option.bounds, option.description) for option in describe(cls))
    say_table(("option", "type", "default", "range", "meaning"), rows)


@command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Copy this recipe here.", show_default=False, autocompletion=shipped_names)
    ] = None,
    to: Annotated[Path, typer.Option(help="Where to copy it.")] = Path("."),
    json: Json = False,
) -> None:
    """List the shipped recipes, or copy one (with what it extends) into a folder."""
    from hookflat.recipe.shipped import find_recipe, is_file, needs, recipe_folders, title, with_bases

    folders = recipe_folders()
    if name is None:
        listed = [
            {
                "name": str(path.relative_to(folder).with_suffix("")),
                "title": title(path),
                "needs": needs(path),
                "package": package,
            }
            for package, folder in folders
            for path in sorted(folder.rglob("*.toml"))
        ]
        if json:
            print_json(listed)
            return
        for facts in listed:
            origin = "" if facts["package"] == "hookflat" else f" ({facts['package']})"
            say(f"{facts['name']:<24} {facts['title']}{origin}")
            if facts["needs"]:
                say(f"{'':<24} needs {facts['needs']}")
        return
    targets: list[tuple[Path, Path]] = []
    for path in with_bases(find_recipe(name)):
        home = next((f for _, f in folders if path.is_relative_to(f)), path.parent)
        target = to / path.relative_to(home)
        if not target.exists():
            targets.append((path, target))
        elif is_file(target) and target.read_bytes() == path.read_bytes():  # another recipe extends it too
            say(f"{target} is there already")
        else:
            raise UserError(f"{target} exists already: remove it, or choose another folder with --to")
    for path, target in targets:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise UserError(
                f"{target} cannot be written: {error.strerror} (choose another folder with --to)"
            ) from error
        say(str(target))


def say_cost(name: str, cost: Cost) -> None:
    """What a run costs, part by part."""
    from hookflat.training.trial import gigabytes

    step, steps = cost.step, next(part for part in cost.parts if part.name == "training steps")
    unit, length = ("hours", 3600) if cost.hours >= 2 else ("minutes", 60)
    say_head(f"{name}: {3600 * cost.hours / length:.1f} {unit} on {cost.device}, one process")
    rows = []
    for part in cost.parts:
        counts = (f"{n:,}" if n else "" for n in (part.times, part.examples, part.passes))
        rows.append((part.name, *counts, f"{part.seconds / length:.2f}", f"{part.flops / 1e15:.3g}"))
    say_table(("part", "times", "examples", "passes each", unit, "PFLOP"), rows)
    say(f"a step: {steps.seconds / steps.times:.3g} s; of the network's examples {step.images} go back to the images, "
        f"{step.weights} back to the weights, {step.forward} forward alone")  # fmt: skip
    say(f"memory: {gigabytes(cost.memory)} at most; disk: {gigabytes(cost.disk)}; {cost.parameters:,} parameters")


def _sections(tables: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path, plain values) of every table, depth first."""
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    if path and path != ("plugins",):
        yield path, plain
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _sections(value, (*path, key))
