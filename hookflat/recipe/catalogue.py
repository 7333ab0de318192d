"""Finding plugins, building them from recipe tables, and naming the one that failed.

Plugins are entry points of the group `hookflat` (name = class), or the classes of a file given with `--plugin`. Only
what a recipe names is imported, so that a broken package breaks nothing but the recipes that use it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from hookflat import hookspecs
from hookflat.errors import UserError, thrown
from hookflat.recipe.declared import declared_options
from hookflat.recipe.entry_points import installed
from hookflat.recipe.nearest import nearest
from hookflat.terminal import shortened

HOOKS = tuple(name for name, member in vars(hookspecs).items() if hasattr(member, "hookflat_spec"))
"""The names of all hooks, in the order of the loop."""

SLOTS = {
    "data": "build_data",
    "model": "build_model",
    "optimizer": "build_optimizer",
    "schedule": "build_schedule",
    "attack": "craft",
    "loss": "loss",
}
"""Recipe table to the hook that its plugin must answer."""
RESERVED = ("name", "enabled", "if_used")
"""Keys that the table of any plugin may have, so that no option is called so."""


@contextmanager
def _imported(what: str) -> Generator[None]:
    """Whatever the import of a plugin raises is told as the plugin's fault, an exit too, but no Ctrl-C of a user's."""
    try:
        yield
    except BaseException as error:
        if not thrown(error):
            raise
        raise UserError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin comes from: an entry point of an installed package, or a class of a file."""

    name: str
    package: str
    target: EntryPoint | type

    def load(self) -> type:
        """The plugin's class, checked. Raises UserError when it cannot be imported or is no plugin."""
        cls = self.target
        if isinstance(cls, EntryPoint):
            with _imported(f"plugin {self.name!r} of {self.package}"):
                cls = cls.load()
        return _checked(cls, self.name)

    def declared(self) -> dict[str, Any] | None:
        """Its options and their types as its source has them, without importing it; None where that does not say."""
        return declared_options(self.target.module, self.target.attr) if isinstance(self.target, EntryPoint) else None


class Catalogue:
    """All plugins that can be named in a recipe."""

    def __init__(self, extra: Iterable[Path | type] = ()) -> None:
        """`extra`: Python files with plugin classes, or the classes themselves; they win over installed plugins."""
        self.extra = tuple(extra)
        self._sources: dict[str, list[PluginSource]] = {}
        for source in _installed():
            self._add(source)
        for item in self.extra:
            classes = {_name(item): item} if isinstance(item, type) else _classes_of(item)
            for name, cls in classes.items():
                self._sources[name] = [PluginSource(name, cls.__module__ if isinstance(item, type) else str(item), cls)]

    def _add(self, source: PluginSource) -> None:
        known = self._sources.setdefault(source.name, [])
        if source not in known:
            known.append(source)

    def __iter__(self) -> Iterator[PluginSource]:
        return iter([source for name in sorted(self._sources) for source in self._sources[name]])

    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self._sources)

    def find(self, name: str) -> PluginSource:
        """Raises UserError for an unknown name, and for one that two packages claim."""
        sources = self._sources.get(name, [])
        if not sources:
            near = nearest(name, self.names())
            hint = near if "did you mean" in near else " (`hookflat plugins` lists them)"
            raise UserError(f"no plugin is called {shortened(name)}{hint}")
        if len(sources) > 1:
            packages = " and ".join(s.package for s in sources)
            raise UserError(f"plugin {name!r} is claimed by {packages}: uninstall one of them")
        return sources[0]


@cache
def _installed() -> tuple[PluginSource, ...]:
    """What entry points name, looked up once: reading the metadata of every package takes a tenth of a second."""
    return tuple(PluginSource(point.name, package, point) for point, package in installed("hookflat"))


@cache
def catalogue_of(files: tuple[str, ...] = ()) -> Catalogue:
    """What is installed and the plugins of `files`, looked up once: that takes longer than reading a recipe."""
    return Catalogue([Path(file) for file in files])


def hooks_of(cls: type) -> dict[str, bool]:
    """The hooks that a plugin class implements, in the order of the loop, each with whether it is a wrapper."""
    marks = {hook: getattr(getattr(cls, hook, None), "hookflat_impl", None) for hook in HOOKS}
    return {hook: mark["wrapper"] for hook, mark in marks.items() if mark}


def kind_of(cls: type) -> str:
    """What a plugin is, from the hooks that it answers: the slot it fits, or what it does.

    A class attribute `kind` names what hooks do not tell (it decides no place in a recipe).
    """
    hooks = hooks_of(cls)
    for slot, hook in SLOTS.items():
        if hooks.get(hook) is False:
            return slot
    if "measure" in hooks:
        return "measure"
    if isinstance(named := getattr(cls, "kind", None), str):
        return named
    if "gradients" in hooks:
        return "weight perturbation"
    if {"transform_batch", "criterion", "extra_loss"} & hooks.keys():
        return "regularizer"
    return "figure" if set(hooks) == {"draw"} else "other"


def _checked(cls: Any, name: str) -> type:
    try:
        return _plugin_class(cls, name)
    except UserError:
        raise
    except Exception as error:  # a metaclass, a property of the class
        raise UserError(f"plugin {name!r} cannot be looked at: {type(error).__name__}: {error}") from error


def _plugin_class(cls: Any, name: str) -> type:
    if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
        raise UserError(f"plugin {name!r} is not a dataclass: mark its class with @dataclass(eq=False)")
    if cls.__eq__ is not object.__eq__:
        raise UserError(f"plugin {name!r} compares by value: mark its class with @dataclass(eq=False)")
    for hook in HOOKS:
        method = getattr(cls, hook, None)
        if callable(method) and not hasattr(method, "hookflat_impl"):
            raise UserError(f"plugin {name!r} has a method {hook!r} without @hookimpl, which would never be called")
    if getattr(cls, "kind", None) in (*SLOTS, "measure"):
        raise UserError(f"plugin {name!r} calls itself a {cls.kind}, which its hooks decide: give `kind` another word")
    stray = [n for n, m in inspect.getmembers(cls) if hasattr(m, "hookflat_impl") and n not in HOOKS]
    if stray:
        raise UserError(f"plugin {name!r} marks {stray[0]!r}, which is no hook{nearest(stray[0], list(HOOKS))}")
    pair = "state_dict", "load_state_dict"
    if len(there := [method for method in pair if callable(getattr(cls, method, None))]) == 1:
        raise UserError(f"plugin {name!r} has {there[0]!r} alone: a run that goes on needs both of {', '.join(pair)}")
    if not (hooks := hooks_of(cls)):
        raise UserError(f"plugin {name!r} implements no hook: mark a method with @hookimpl")
    if "measure" in hooks and (others := [hook for hook in hooks if hook != "measure"]):
        raise UserError(
            f"plugin {name!r} answers {others[0]!r} beside 'measure', but stands in [eval] or elsewhere: make it two"
        )
    if reserved := [f.name for f in dataclasses.fields(cls) if f.init and f.name in RESERVED]:
        raise UserError(f"plugin {name!r} has an option {reserved[0]!r}, which recipes have of every plugin: rename it")
    return cls


def _name(cls: type) -> str:
    """MyLoss is called my_loss, MLPMixer mlp_mixer."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", "_", cls.__name__).lower()


def _marked(cls: type) -> bool:
    """Whether any method is marked, also one whose name is no hook: that is told later, by name."""
    return any(hasattr(member, "hookflat_impl") for member in vars(cls).values()) or bool(hooks_of(cls))


def _classes_of(file: Path) -> dict[str, type]:
    """Plugin classes defined in a Python file, by name."""
    if not file.is_file():
        raise UserError(f"--plugin {file}: no such file")
    own = hashlib.blake2b(os.fsencode(file.resolve()), digest_size=4).hexdigest()  # two files may be called alike
    spec = importlib.util.spec_from_file_location(f"hookflat_file_{file.stem}_{own}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _imported(f"--plugin {file}:"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    classes = {
        _name(cls): cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__ == spec.name and _marked(cls)
    }
    if not classes:
        raise UserError(f"--plugin {file}: has no class with a method marked @hookimpl")
    return classes
