"""Recipes: TOML files, merged, checked, and turned into plugin instances.

A recipe is data. `extends` names files relative to its own; tables merge and the later file wins, except that a slot
whose
`name` changes drops the options of the plugin it had. Every value remembers the file and line it came from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field

from hookflat.errors import UserError
from hookflat.recipe.catalogue import SLOTS, Catalogue, kind_of
from hookflat.recipe.merging import Merged, Place, assignment
from hookflat.recipe.options import InvalidOptions, Number, Period, as_table, build, nearest
from hookflat.recipe.shipped import find_recipe


@dataclass(eq=False)
class RunOptions:
    """The table `[run]`."""

    seed: Annotated[int, Field(ge=0, description="of every random number")] = 0
    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 80
    epochs_factor: Annotated[Number, Field(gt=0, description="multiplies epochs, at every scale")] = 1.0
    batch_size: Annotated[int, Field(ge=2, description="examples a step, over all processes")] = 128
    precision: Annotated[Literal["fp32", "bf16"], Field(description="of the training passes")] = "fp32"
    threads: Annotated[int, Field(ge=0, description="CPU threads a process; 0: as the network needs")] = 0
    checkpoint_steps: Annotated[int, Field(ge=1, description="steps between checkpoints inside an epoch")] = 1000
    folder: Annotated[str, Field(description="{recipe} and {seed} are filled in")] = "runs/{recipe}-{seed}"

    def __post_init__(self) -> None:
        unknown = set(re.findall(r"{(.*?)}", self.folder)) - {"recipe", "seed"}
        if unknown:
            raise ValueError(f"folder fills in {{recipe}} and {{seed}} only, not {{{unknown.pop()}}}")

    @property
    def total_epochs(self) -> int:
        """`epochs` times `epochs_factor`."""
        return max(1, round(self.epochs * self.epochs_factor))


@dataclass(eq=False)
class EvalOptions:
    """The table `[eval]`, without its stages."""

    eps: Annotated[Number, Field(ge=0, le=1, description="L-infinity radius of every measure")] = 8 / 255
    step_size: Annotated[Number, Field(gt=0, description="of every measure's PGD")] = 0.007
    batch_size: Annotated[int, Field(ge=1, description="examples a batch, on each process")] = 250


@dataclass(eq=False)
class Stage:
    """One table `[eval.STAGE]`: measures on splits, all through the training (`every`) or, without it, at its end."""

    every: Annotated[Period | None, Field(description="epochs, or a share of the training below 1")] = None
    splits: Annotated[list[Literal["train", "test"]], Field(description="which sets", min_length=1)] = field(
        default_factory=lambda: ["test"]
    )
    examples: Annotated[int, Field(ge=1, description="the first of each split")] = 1000
    models: Annotated[
        list[Literal["last", "best"]],
        Field(description="at the end: which networks (best: early stopped)", min_length=1),
    ] = field(default_factory=lambda: ["last", "best"])


@dataclass(eq=False)
class TrackOptions:
    """The table `[track]`; in a recipe `trackers` is called `with`."""

    trackers: Annotated[list[str], Field(description="tensorboard, wandb, trackio ...")] = field(default_factory=list)
    project: Annotated[str, Field(description="as the tracker groups runs")] = "hookflat"

    def __post_init__(self) -> None:
        if not self.trackers:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        available = [str(getattr(t, "value", t)) for t in get_available_trackers()]
        for name in self.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ValueError(f"no tracker is called {name!r}{nearest(name, list(LOGGER_TYPE_TO_CLASS))}")
            if name not in available:
                raise ValueError(f"the tracker {name!r} is not installed: pip install {name}")


@dataclass
class Recipe:
    """A checked recipe: options, plugin instances, and where every value came from."""

    name: str
    run: RunOptions
    eval: EvalOptions
    track: TrackOptions
    slots: dict[str, Any]
    """Slot to plugin instance."""
    slot_names: dict[str, str]
    """Slot to plugin name."""
    plugins: dict[str, Any]
    """`[plugins.*]`: name to instance, in recipe order, without the disabled ones."""
    stages: dict[str, Stage]
    measures: dict[str, dict[str, Any]]
    """Stage to measures: name to instance."""
    origins: dict[Place, str]
    """Path of a value to "file:line" or "--set"."""
    tables: dict[str, Any] = field(repr=False)
    """The resolved recipe with every default filled in."""
    catalogue: Catalogue = field(repr=False)
    """Where its plugins were found."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.folder.replace("{recipe}", self.name).replace("{seed}", str(self.run.seed)))

    def registered(self) -> dict[str, Any]:
        """All training plugins by name in call order: `[plugins.*]` first, then the slots."""
        return self.plugins | {self.slot_names[s]: p for s, p in self.slots.items()}

    def to_toml(self) -> str:
        """The resolved recipe, re-runnable as it is."""
        return tomli_w.dumps(self.tables)

    def origin(self, path: Place) -> str:
        """Where a value came from, or "default"."""
        return self.origins.get(path, "default")


def load(
    recipe: str | Path | dict[str, Any],
    *,
    overlays: Iterable[str | Path] = (),
    overrides: Iterable[str] | dict[str, Any] = (),
    catalogue: Catalogue | None = None,
    needs: Collection[str] = tuple(SLOTS),
) -> Recipe:
    """Read, merge and check a recipe.

    `recipe`, `overlays`: files, or names of recipes that come with hookflat; a recipe may also be a dict of tables.
    `overrides`: "table.key=value" strings, or a dict with such keys. `needs`: the slots that must be filled. Raises
    UserError with file and line for everything that is wrong, before any data is loaded.
    """
    merged = Merged()
    if isinstance(recipe, dict):
        name = "recipe"
        merged.add_tables(recipe)
    else:
        path = find_recipe(recipe)
        name = path.stem
        merged.add_file(path)
    for overlay in overlays:
        merged.add_file(find_recipe(overlay))
    pairs = overrides.items() if isinstance(overrides, dict) else (assignment(o) for o in overrides)
    for key, value in pairs:
        merged.add_value(key, value)
    return _Checker(merged, catalogue or Catalogue(), needs).recipe(name)


class _Checker:
    """Merged tables to a Recipe; collects faults, so that one look shows them all."""

    def __init__(self, merged: Merged, catalogue: Catalogue, needs: Collection[str]) -> None:
        self.tables, self.origins, self.catalogue, self.needs = merged.tables, merged.origins, catalogue, needs
        self.faults: list[str] = []

    def recipe(self, name: str) -> Recipe:
        known = [*SLOTS, "plugins", "run", "eval", "track"]
        for table in self.tables.keys() - set(known):
            self._fault((table,), f"unknown table{nearest(table, [*known, 'extends'])}")
        if not self.tables.keys() & SLOTS.keys():
            self._fault((), 'names no plugin: begin with extends = "at", or another of `hookflat recipes`')
            raise UserError("\n".join(self.faults))
        run = self._options(("run",), RunOptions, self._table("run"))
        slots, slot_names = self._slots()
        plugins = self._plugins()
        options, stages, measures = self._eval()
        asked = {"trackers" if key == "with" else key: value for key, value in self._table("track").items()}
        track = self._options(("track",), TrackOptions, asked)
        self._clashes(slot_names, plugins)
        if self.faults:
            raise UserError("\n".join(self.faults))
        resolved = {"run": as_table(run)}
        resolved |= {slot: {"name": slot_names[slot]} | as_table(p) for slot, p in slots.items()}
        resolved["plugins"] = {n: as_table(p) for n, p in plugins.items()}
        resolved["eval"] = as_table(options) | {
            stage: as_table(s) | {n: as_table(m) for n, m in measures[stage].items()} for stage, s in stages.items()
        }
        if track.trackers:
            resolved["track"] = {"with": track.trackers, "project": track.project}
        parts = (run, options, track, slots, slot_names, plugins, stages, measures)
        return Recipe(name, *parts, self.origins, resolved, self.catalogue)

    def _fault(self, path: Place, message: str) -> None:
        where = next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), "recipe")
        self.faults.append(": ".join(part for part in (where, ".".join(path), message) if part))

    def _table(self, *path: str) -> dict[str, Any]:
        table: Any = self.tables
        for part in path:
            table = table.get(part, {})
        if not isinstance(table, dict):
            self._fault(path, f"should be a table [{'.'.join(path)}], not {table!r}")
            return {}
        return table

    def _options(self, path: Place, cls: type, table: dict[str, Any], plugin: str = "") -> Any:
        try:
            return build(cls, table)
        except InvalidOptions as error:
            for inner, message in error.faults:
                named = f"unknown option of {plugin!r}" if plugin else "unknown option"
                self._fault((*path, *inner), message.replace("unknown option", named, 1))

    def _load(self, path: Place, name: Any, fits: str) -> type | None:
        """The class of a plugin for a place where only the kind `fits` may stand."""
        try:
            cls = self.catalogue.find(str(name)).load()
        except UserError as error:
            self._fault(path, str(error))
            return None
        kind = kind_of(cls)
        kind = kind if kind in SLOTS or kind == "measure" else "plugin"
        if kind != fits:
            places = {"measure": "[eval.STAGE.NAME]", "plugin": "[plugins.NAME]"}
            what = "no slot's and no measure" if kind == "plugin" else f"a {kind}"
            self._fault(path, f"plugin {name!r} is {what}: it belongs in {places.get(kind, f'[{kind}]')}")
            return None
        return cls

    def _slots(self) -> tuple[dict[str, Any], dict[str, str]]:
        slots, names = {}, {}
        for slot in [s for s in SLOTS if s in self.needs or s in self.tables]:
            table = dict(self._table(slot))
            name = table.pop("name", None)
            if name is None:
                self._fault((slot,), f'no plugin is named: write name = "..." in [{slot}]')
            elif cls := self._load((slot, "name"), name, slot):
                slots[slot], names[slot] = self._options((slot,), cls, table, str(name)), str(name)
        return slots, names

    def _enabled(self, path: Place, table: dict[str, Any]) -> bool:
        """Take `enabled` out of a table."""
        enabled = table.pop("enabled", True)
        if not isinstance(enabled, bool):
            self._fault((*path, "enabled"), f"should be true or false, not {enabled!r}")
        return bool(enabled)

    def _plugins(self) -> dict[str, Any]:
        found = {}
        for name in self._table("plugins"):
            table = dict(self._table("plugins", name))
            path = ("plugins", name)
            if self._enabled(path, table) and (cls := self._load(path, name, "plugin")):
                found[name] = self._options(path, cls, table, name)
        return found

    def _eval(self) -> tuple[Any, dict[str, Any], dict[str, dict[str, Any]]]:
        table = self._table("eval")
        options = self._options(("eval",), EvalOptions, {k: v for k, v in table.items() if not isinstance(v, dict)})
        stages, measures = {}, {}
        for stage in [k for k, v in table.items() if isinstance(v, dict)]:
            keys = {k: v for k, v in table[stage].items() if not isinstance(v, dict)}
            if not self._enabled(("eval", stage), keys):
                continue
            stages[stage] = self._options(("eval", stage), Stage, keys)
            measures[stage] = {}
            if not any(isinstance(v, dict) for v in table[stage].values()):
                self._fault(("eval", stage), f"a stage without measures: add a table [eval.{stage}.MEASURE]")
            for name in [k for k, v in table[stage].items() if isinstance(v, dict)]:
                path, inner = ("eval", stage, name), dict(table[stage][name])
                if self._enabled(path, inner) and (cls := self._load(path, name, "measure")):
                    measures[stage][name] = self._options(path, cls, inner, name)
        self._measured_twice(stages, measures)
        return options, stages, measures

    def _measured_twice(self, stages: dict[str, Any], measures: dict[str, dict[str, Any]]) -> None:
        """At the end, a number has one value: no measure twice on a split."""
        seen: dict[tuple[str, str], str] = {}
        for stage, options in stages.items():
            for name in measures[stage] if options is not None and options.every is None else ():
                for split in options.splits:
                    first = seen.setdefault((name, split), stage)
                    if first != stage:
                        self._fault(("eval", stage, name), f"measured on {split!r} in [eval.{first}] already")

    def _clashes(self, slot_names: dict[str, str], plugins: dict[str, Any]) -> None:
        """Plugins that exclude each other: a class attribute `excludes` maps names to the reason."""
        places = {n: ("plugins", n) for n in plugins} | {n: (slot, "name") for slot, n in slot_names.items()}
        for name, place in places.items():
            try:
                excludes = getattr(self.catalogue.find(name).load(), "excludes", {})
            except UserError:
                continue
            for other in excludes.keys() & places.keys():
                self._fault(place, f"{name!r} does not go with {other!r}: {excludes[other]}")


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The values that differ between a folder's resolved recipe and this one, "key: 5 in the folder, 1 now"."""
    old, new = (dict(flat(tables)) for tables in (there, here))
    return [
        f"{'.'.join(key)}: {old.get(key, 'nothing')} in the folder, {new.get(key, 'nothing')} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def flat(tables: dict[str, Any], at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """(path, value) of every value in nested tables; an empty table is a value."""
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*at, key))
        else:
            yield (*at, key), value
