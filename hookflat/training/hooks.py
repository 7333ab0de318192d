"""Calling the plugins of a run, in their order, and naming the one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

from hookflat import hookspecs
from hookflat.errors import TrainingFailed, UserError, thrown
from hookflat.recipe.catalogue import HOOKS
from hookflat.training.answers import wrong_answer

ANSWERED_ONCE = frozenset(hook for hook in HOOKS if getattr(hookspecs, hook).hookflat_spec["firstresult"])
"""The hooks of which the first plugin that answers is the only one: others are asked where it answers None."""


class Hooks:
    """The hooks of one run: `hooks.call.NAME(...)` calls the registered plugins, first registered first."""

    def __init__(self, plugins: dict[str, Any]) -> None:
        self.manager = _Manager("hookflat")
        self.manager.add_hookspecs(hookspecs)
        for name, plugin in reversed(plugins.items()):  # pluggy calls the last registered first
            try:
                self.manager.register(plugin, name)
            except pluggy.PluginValidationError as error:
                raise UserError(_told(name, error)) from error
        self.manager.add_hookcall_monitoring(lambda *_: None, self._look)
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise UserError(_told(self.manager.get_name(error.plugin), error)) from error
        self.call = self.manager.hook

    def only(self, hook: str, plugin: Any) -> Any:
        """A hook's caller that reaches one plugin alone."""
        return self.manager.subset_hook_caller(hook, [p for p in self.manager.get_plugins() if p is not plugin])

    def without(self, hook: str, plugin: Any) -> Any:
        """A hook's caller that leaves one plugin out."""
        return self.manager.subset_hook_caller(hook, [plugin])

    def order(self) -> dict[str, list[str]]:
        """Hook to the names of its plugins in call order, wrappers marked `name (around)`."""
        by_hook = {}
        for hook in HOOKS:
            impls = getattr(self.call, hook).get_hookimpls()
            ordered = [i for i in reversed(impls) if i.wrapper] + [i for i in reversed(impls) if not i.wrapper]
            by_hook[hook] = [f"{i.plugin_name} (around)" if i.wrapper else i.plugin_name for i in ordered]
        return {hook: names for hook, names in by_hook.items() if names}

    def behind(self, hook: str, answers: Sequence[Any]) -> list[str]:
        """The plugin behind each answer of a hook that all may answer; all of them, where one had none to give."""
        names = [i.plugin_name for i in reversed(getattr(self.call, hook).get_hookimpls()) if not i.wrapper]
        return names if len(names) == len(answers) else [" or ".join(names)] * len(answers)

    def _look(self, outcome: Any, hook_name: str, hook_impls: Any, kwargs: Any, /) -> None:
        """Answers are of their types. A plugin that would end the whole program, or a `with` around it, has failed."""
        error = outcome.exception
        if error is None and (wrong := wrong_answer(hook_name, outcome.get_result())):
            raise TrainingFailed(f"hook {hook_name!r} (plugins: {answering(hook_impls)}) {wrong}")
        ends = isinstance(error, StopIteration) or not isinstance(error, Exception | None)
        if ends and thrown(error) and (told := self.blame(error)):
            raise told from error

    def blame(self, error: BaseException) -> TrainingFailed | None:
        """The failure as told to a user, when `error` came out of a plugin's hook: names plugin, hook and place."""
        owners = {
            getattr(function, "__code__", None): (name, f"method {method!r}")
            for name, plugin in self.manager.list_name_plugin()
            for method, function in vars(type(plugin)).items()
        }
        owners |= {
            getattr(impl.function, "__code__", None): (impl.plugin_name, f"hook {caller.name!r}")
            for plugin in self.manager.get_plugins()
            for caller in self.manager.get_hookcallers(plugin) or []
            for impl in caller.get_hookimpls()
            if impl.plugin is plugin
        }
        culprit, place, frame = None, "", error.__traceback__
        while frame is not None:
            code = frame.tb_frame.f_code
            if owner := owners.get(code):
                inside = culprit is not None and owner[0] == culprit[0]  # a plugin's own methods inside its hook
                culprit = culprit if inside else owner
                place = f"{code.co_filename}:{frame.tb_lineno}"
            frame = frame.tb_next
        if culprit is None:
            return None
        name, where = culprit
        return TrainingFailed(
            f"plugin {name!r} failed in {where}: {type(error).__name__}: {error} ({place}; --debug shows the traceback)"
        )


def answering(impls: Any) -> str:
    """The names of the plugins behind a hook's call, the core where there is no other."""
    return ", ".join(repr(i.plugin_name) for i in reversed(impls) if i.plugin_name != "core") or "core"


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """None for double underscores, of which every object has thirty: looking into them took most of `register`."""
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


def _told(name: str | None, error: pluggy.PluginValidationError) -> str:
    return f"plugin {name!r} does not fit the hooks: {' '.join(str(error).split())}"
