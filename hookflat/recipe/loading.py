"""Recipes: TOML files, merged, checked, and turned into plugin instances.

A recipe is data. `extends` names files relative to its own; tables merge and the later file wins, except that a slot
whose `name` changes drops the options of the plugin it had. Every value remembers the file and line it came from.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.functional.choices import step_for
from hookflat.recipe.catalogue import SLOTS, Catalogue, PluginSource, hooks_of, kind_of
from hookflat.recipe.merging import Merged, assignments
from hookflat.recipe.naming import suffix
from hookflat.recipe.nearest import nearest
from hookflat.recipe.options import MOST_FAULTS, InvalidOptions, as_table, build, check_declared
from hookflat.recipe.recipe import EvalOptions, Recipe, RunOptions, Stage, TrackOptions
from hookflat.recipe.shipped import find_recipe
from hookflat.recipe.tables import NORMS, RADII, Place, flat_by_norm, is_by_norm, norm_of
from hookflat.terminal import clipped, shortened


def load_recipe(
    recipe: str | Path | dict[str, Any],
    *,
    name: str | None = None,
    origin: str = "recipe",
    overlays: Iterable[str | Path] = (),
    overrides: Iterable[str] | dict[str, Any] = (),
    catalogue: Catalogue | None = None,
    needs: Collection[str] = tuple(SLOTS),
    tables: Collection[str] = (*SLOTS, "plugins", "eval"),
) -> Recipe:
    """Read, merge and check a recipe.

    `recipe`, `overlays`: files, or names of recipes that come with hookflat; a recipe may also be a dict of tables.
    `name`: of the recipe, instead of its file's. `origin`: where tables are from, for messages.
    `overrides`: "table.key=value" strings, or a dict with such keys. `needs`: the slots that must be filled. `tables`:
    those whose plugins are loaded, in place of all. Raises UserError with file and line for everything that is wrong,
    before any data is loaded.
    """
    merged = Merged()
    if isinstance(recipe, dict):
        merged.add_tables(recipe, origin)
    else:
        recipe = find_recipe(recipe)
        merged.add_file(recipe)
    overlays, catalogue = list(overlays), catalogue or Catalogue()
    for overlay in overlays:
        merged.add_file(find_recipe(overlay))
    values = assignments(overrides)
    merged.add_values(values)
    checker = _Checker(merged, catalogue, needs, tables)
    loaded = checker.recipe(name or ("recipe" if isinstance(recipe, dict) else recipe.stem))
    files = [file for file in catalogue.extra if isinstance(file, Path)]
    return replace(loaded, suffix=suffix(overlays, files, dict(values)))


class _Checker:
    """Merged tables to a Recipe; collects faults, so that one look shows them all."""

    def __init__(self, merged: Merged, catalogue: Catalogue, needs: Collection[str], loaded: Collection[str]) -> None:
        self.tables, self.origins, self.catalogue = merged.tables, merged.origins, catalogue
        self.norms, self.threat = merged.norms, merged.threat
        self.needs, self.loaded = needs, loaded
        self.faults: list[str] = []

    def recipe(self, name: str) -> Recipe:
        known = [*SLOTS, "plugins", "run", "eval", "track"]
        for table in [table for table in self.tables if table not in known]:
            wrong = f"unknown table{nearest(table, [*known, 'extends'])}"
            self._fault((table,), "stands in files alone: --with lays a recipe over" if table == "extends" else wrong)
        if not self.tables.keys() & SLOTS.keys():
            self._fault((), 'names no plugin: begin with extends = "at", or another of `hookflat recipes`')
            raise UserError("\n".join(self.faults))
        self._take_norms()
        run = self._options(("run",), RunOptions, self._table("run"))
        options, stages = self._stages()
        asked = {"trackers" if key == "with" else key: value for key, value in self._table("track").items()}
        track = self._options(("track",), TrackOptions, asked)
        self._names()
        slots, slot_names = self._slots()
        plugins = self._plugins()
        measures = self._measures(stages)
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

    def _take_norms(self) -> None:
        """Of every value that is written for each norm, the one of the threat's: `[attack] norm`, which measures take
        too, unless `[eval] norm` says otherwise. A radius that was written for another norm alone is none of it."""
        asked = "eval" if "norm" in self._table("eval") else "attack"
        if (named := self._table(asked).get("norm", NORMS[0])) not in NORMS:
            self._fault((asked, "norm"), f"should be 'Linf', 'L2' or 'L1', not {shortened(named)}")
            raise UserError("\n".join(self.faults))  # no radius can be looked up
        for place in RADII:
            self._of_its_norm(*place)
        norm = norm_of("attack", self.tables)
        if "norm" in self._table("attack") and "norm" not in self._table("eval"):
            self.tables.setdefault("eval", {})["norm"] = norm
            self.origins["eval", "norm"] = self.origins.get(("attack", "norm"), "recipe")
        for place, value in list(flat_by_norm(self.tables)):
            threat = self._table("eval").get("norm", norm) if place[0] == "eval" else norm
            table = self._table(*place[:-1])
            if threat in value:
                table[place[-1]] = value[threat]
            elif threat in NORMS:
                self._fault(
                    place, f"says nothing for the norm {threat}: set it, or write {threat} = ... into its braces"
                )
                table[place[-1]] = next(iter(value.values()))

    def _of_its_norm(self, table: str, key: str) -> None:
        """A radius or a step without a norm is of the one that held where it was written; what is not said, of the
        first. A step may be left unsaid: there are attacks that choose their own."""
        place, values, norm = (table, key), self._table(table), norm_of(table, self.tables)
        meant = self.norms.get(place, NORMS[0])
        if norm == meant or norm not in NORMS or is_by_norm(values.get(key)):
            return
        asked = next(self.origins[name, "norm"] for name in (table, "attack") if (name, "norm") in self.origins)
        if key in values:
            told = f"{shortened(values[key])} was written for the norm {meant}, and {asked} asks for {norm}"
        elif key == "eps":
            told = f"{asked} asks for the norm {norm}, and the default is a radius in {meant}"
        else:
            return
        self._fault(place, f"{told}: set {table}.{key} too, or write {key} = {{ {meant} = ..., {norm} = ... }}")

    def _fault(self, path: Place, message: str) -> None:
        where = next((self.origins[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.origins), "recipe")
        told = ": ".join(part for part in (where, ".".join(path), clipped(message, 1000)) if part)
        if told not in self.faults:
            self.faults.append(told)
        if len(self.faults) == MOST_FAULTS:
            raise UserError("\n".join([*self.faults, "and perhaps more"]))

    def _table(self, *path: str) -> dict[str, Any]:
        table: Any = self.tables
        for part in path:
            table = table.get(part, {})
        if not isinstance(table, dict):
            self._fault(path, f"should be a table [{'.'.join(path)}], not {shortened(table)}")
            return {}
        return table

    def _options(self, path: Place, cls: type, table: dict[str, Any], plugin: str = "") -> Any:
        try:
            return build(cls, table)
        except InvalidOptions as error:
            self._invalid(path, error, plugin)

    def _invalid(self, path: Place, error: InvalidOptions, plugin: str) -> None:
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
            what = "no slot's and no measure" if kind == "plugin" else f"{'an' if kind[0] in 'ao' else 'a'} {kind}"
            self._fault(path, f"plugin {shortened(name)} is {what}: it belongs in {places.get(kind, f'[{kind}]')}")
            return None
        if others := [slot for slot, hook in SLOTS.items() if slot != fits and hooks_of(cls).get(hook) is False]:
            told = f"answers {SLOTS[others[0]]!r} too, which is for [{others[0]}] alone: wrap it"
            self._fault(path, f"plugin {shortened(name)} {told}")
            return None
        return cls

    def _names(self) -> None:
        """Every plugin and every option that is named is there, and of its type: told before a plugin is imported,
        which takes seconds where it needs torch.

        Raises UserError for all that are not.
        """
        named: list[tuple[Place, Any]] = []
        for slot in self._filled():
            table = self._table(slot)
            if "name" in table:
                named.append(((slot, "name"), table["name"]))
            elif meant := [key for key in table if nearest(key, ["name"]).startswith(" (did")]:
                self._fault((slot, meant[0]), f"unknown option{nearest(meant[0], ['name'])}")
            else:
                self._fault((slot,), f'no plugin is named: write name = "..." in [{slot}]')
        named += [(("plugins", name), name) for name in self._table("plugins")]
        for stage, table in self._table("eval").items():
            if not isinstance(table, dict) or table.get("enabled") is False:
                continue
            measures = [k for k, v in table.items() if isinstance(v, dict)]
            named += [(("eval", stage, name), name) for name in measures]
        for path, name in named:
            try:
                plugin = self.catalogue.find(str(name))
            except UserError as error:
                self._fault(path, str(error))
            else:
                self._declared(plugin, path[:-1] if path[-1] == "name" else path)
        if self.faults:
            raise UserError("\n".join(self.faults))

    def _declared(self, plugin: PluginSource, path: Place) -> None:
        """Options that are not as the plugin's source has them; with torch loaded, all faults are told together."""
        table, of_recipe = self._table(*path), "name" if path[0] in SLOTS else "enabled"
        if "torch" in sys.modules or table.get("enabled") is False or (declared := plugin.declared()) is None:
            return
        table = self._own(path, table, declared)
        try:
            check_declared(declared, {key: value for key, value in table.items() if key != of_recipe})
        except InvalidOptions as error:
            self._invalid(path, error, plugin.name)

    def _own(self, path: Place, table: dict[str, Any], options: Collection[str]) -> dict[str, Any]:
        """A plugin's table without the threat of the plugin before it where this one has no such options."""
        return {key: v for key, v in table.items() if key in options or (*path, key) not in self.threat}

    def _filled(self) -> list[str]:
        return [slot for slot in SLOTS if slot in self.needs or slot in self.tables]

    def _slots(self) -> tuple[dict[str, Any], dict[str, str]]:
        slots, names = {}, {}
        wanted = [slot for slot in self._filled() if slot in self.loaded]
        for slot in sorted(wanted, key=lambda slot: slot != "model"):
            table = dict(self._table(slot))
            name = table.pop("name")
            if cls := self._load((slot, "name"), name, slot):
                table = self._own((slot,), table, getattr(cls, "__dataclass_fields__", {}))
                slots[slot], names[slot] = self._options((slot,), cls, table, str(name)), str(name)
            if self.faults and slot == "model":  # timm's names are known without torch, which most of the others import
                raise UserError("\n".join(self.faults))
        return {s: slots[s] for s in SLOTS if s in slots}, {s: names[s] for s in SLOTS if s in names}

    def _enabled(self, path: Place, table: dict[str, Any]) -> bool:
        """Take `enabled` out of a table."""
        enabled = table.pop("enabled", True)
        if not isinstance(enabled, bool):
            self._fault((*path, "enabled"), f"should be true or false, not {shortened(enabled)}")
        return bool(enabled)

    def _plugins(self) -> dict[str, Any]:
        plugins = {}
        for name in self._table("plugins") if "plugins" in self.loaded else ():
            table = dict(self._table("plugins", name))
            path = ("plugins", name)
            if self._enabled(path, table) and (cls := self._load(path, name, "plugin")):
                plugins[name] = self._options(path, cls, table, name)
        return plugins

    def _stages(self) -> tuple[Any, dict[str, Any]]:
        """Options of `[eval]`, and of each of its stages that is not switched off."""
        table, stages = self._table("eval"), {}
        options = self._options(("eval",), EvalOptions, {k: v for k, v in table.items() if not isinstance(v, dict)})
        if options and "step_size" not in table:
            options.step_size = step_for(options.eps)
        for stage in [k for k, v in table.items() if isinstance(v, dict)]:
            keys = {k: v for k, v in table[stage].items() if not isinstance(v, dict)}
            if self._enabled(("eval", stage), keys):
                stages[stage] = self._options(("eval", stage), Stage, keys)
                if not any(isinstance(v, dict) for v in table[stage].values()):
                    self._fault(("eval", stage), f"a stage without measures: add a table [eval.{stage}.MEASURE]")
        return options, stages

    def _measures(self, stages: dict[str, Any]) -> dict[str, dict[str, Any]]:
        measures: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
        for stage in stages if "eval" in self.loaded else ():
            for name in [k for k, v in self._table("eval", stage).items() if isinstance(v, dict)]:
                path, inner = ("eval", stage, name), dict(self._table("eval", stage, name))
                if self._enabled(path, inner) and (cls := self._load(path, name, "measure")):
                    measures[stage][name] = self._options(path, cls, inner, name)
        self._measured_twice(stages, measures)
        return measures

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
            for other in [n for n in excludes if n in places] if isinstance(excludes, dict) else ():
                self._fault(place, f"{name!r} does not go with {other!r}: {excludes[other]}")
