"""Calling the plugins of a run, in their order, and naming the one that failed."""

from __future__ import annotations

from typing import Any

import pluggy

from hookflat import hookspecs
from hookflat.errors import TrainingFailed, UserError
from hookflat.recipe.catalogue import HOOKS


class Hooks:
    """The hooks of one run: `hooks.call.NAME(...)` calls the registered plugins, first registered first."""

    def __init__(self, plugins: dict[str, Any]) -> None:
        self.manager = pluggy.PluginManager("hookflat")
        self.manager.add_hookspecs(hookspecs)
        for name, plugin in reversed(plugins.items()):  # pluggy calls the last registered first
            try:
                self.manager.register(plugin, name)
            except pluggy.PluginValidationError as error:
                raise UserError(_told(name, error)) from error
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
        found = {}
        for hook in HOOKS:
            impls = getattr(self.call, hook).get_hookimpls()
            ordered = [i for i in reversed(impls) if i.wrapper] + [i for i in reversed(impls) if not i.wrapper]
            found[hook] = [f"{i.plugin_name} (around)" if i.wrapper else i.plugin_name for i in ordered]
        return {hook: names for hook, names in found.items() if names}

    def blame(self, error: BaseException) -> TrainingFailed | None:
        """The failure as told to a user, when `error` came out of a plugin's hook: names plugin, hook and place."""
        owners = {
            getattr(impl.function, "__code__", None): (impl.plugin_name, caller.name)
            for plugin in self.manager.get_plugins()
            for caller in self.manager.get_hookcallers(plugin) or []
            for impl in caller.get_hookimpls()
            if impl.plugin is plugin
        }
        culprit, place, frame = None, "", error.__traceback__
        while frame is not None:
            code = frame.tb_frame.f_code
            culprit = owners.get(code, culprit)
            if owners.get(code):
                place = f"{code.co_filename}:{frame.tb_lineno}"
            frame = frame.tb_next
        if culprit is None:
            return None
        name, hook = culprit
        return TrainingFailed(
            f"plugin {name!r} failed in hook {hook!r}: {type(error).__name__}: {error} "
            f"({place}; --debug shows the traceback)"
        )


def _told(name: str | None, error: pluggy.PluginValidationError) -> str:
    return f"plugin {name!r} does not fit the hooks: {' '.join(str(error).split())}"
