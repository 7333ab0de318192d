"""The first step of every session is watched closely: what plugins hand on must be what `hookspecs.py` says.

Later steps are not, as looking at values makes the device wait.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hookflat.errors import TrainingFailed
from hookflat.training.hooks import Hooks, answering
from hookflat.training.set_aside import set_aside

if TYPE_CHECKING:
    from hookflat.training.run import Run


@contextmanager
def watched(run: Run) -> Generator[None]:
    """Inside, raises TrainingFailed for a hook whose result is wrong, or that leaves the weights moved.

    In a run's very first step at its end for plugins that would change nothing, too: that answer `criterion` where the
    loss does not ask it, or `criterion` or `gradients` behind another that answers.
    """
    network, hooks, begins = run.network, run.hooks, run.step == 0
    weights = set_aside(network.named_parameters())  # the first step takes no more memory than the others
    called: set[str] = set()

    def before(hook_name: str, hook_impls: Any, kwargs: Mapping[str, Any], /) -> None:
        called.add(hook_name)

    def after(outcome: Any, hook_name: str, hook_impls: Any, kwargs: Mapping[str, Any], /) -> None:
        if outcome.exception is None:
            wrong = _wrong(hook_name, outcome.get_result(), kwargs)
            if hook_name == "gradients" and _moved(network, weights):
                wrong = "leaves the weights moved: restore them in `finally` (hookflat.moved does)"
            if wrong:
                raise TrainingFailed(f"hook {hook_name!r} (plugins: {answering(hook_impls)}) {wrong}")

    second = [each for hook in ("criterion", "gradients") for each in _second(hooks, hook)]
    undo = hooks.manager.add_hookcall_monitoring(before, after)
    try:
        with _asked(second) as asked:
            yield
    finally:
        undo()
    if not begins:
        return
    idle = [i for i in hooks.call.criterion.get_hookimpls() if _replaces(i)]
    if "criterion" not in called and idle and not _speaks_of("criterion", run.recipe.slots["loss"]):
        raise TrainingFailed(f"the loss asks no `run.criterion`: {answering(idle)} would change nothing; leave it out")
    for hook, first, behind in second:
        if hook in called and behind not in asked:
            raise TrainingFailed(
                f"plugins {first.plugin_name!r} and {behind.plugin_name!r} both answer {hook!r}, and the first alone "
                "counts: leave one out"
            )


def _second(hooks: Hooks, hook: str) -> list[tuple[str, Any, Any]]:
    """The first plugin that answers in place of the core, and each that would if those before it gave None."""
    first, *behind = [i for i in reversed(getattr(hooks.call, hook).get_hookimpls()) if _replaces(i)] or [None]
    return [(hook, first, other) for other in behind]


@contextmanager
def _asked(second: list[tuple[str, Any, Any]]) -> Generator[list[Any]]:
    """Those of the plugins' hooks behind others that were asked inside."""
    asked = []

    def noting(impl: Any, function: Any) -> Any:
        def asks(*given: Any) -> Any:
            asked.append(impl)
            return function(*given)

        return asks

    functions = [(impl, impl.function) for _, _, impl in second]
    try:
        for impl, function in functions:
            impl.function = noting(impl, function)
        yield asked
    finally:
        for impl, function in functions:
            impl.function = function


def _speaks_of(name: str, plugin: Any) -> bool:
    """Whether a method of the plugin's class uses an attribute of this name: later, where it did not yet."""
    methods = (getattr(member, "__code__", None) for member in vars(type(plugin)).values())
    return any(name in code.co_names for code in methods if code is not None)


def _replaces(impl: Any) -> bool:
    """Whether a plugin answers in place of the core's; a wrapper comes with a loss, a tool looks on."""
    return impl.plugin_name != "core" and not impl.wrapper and getattr(impl.plugin, "kind", "") != "tool"


def _moved(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    return not all(torch.equal(p.cpu(), weights[name]) for name, p in network.named_parameters())


def _wrong(hook: str, result: Any, given: Mapping[str, Any]) -> str | None:
    """What is wrong with the result of a hook, or None."""
    if hook == "transform_batch":
        return _not_images(given["batch"].x, given["batch"].x)
    if hook == "craft":
        detached = None if not _grad(result) else "returned images that require gradients: detach them"
        return detached or _not_images(result, given["batch"].x)
    if hook == "criterion":
        return _not_shaped(result, given["logits"].shape[:1])
    if hook == "loss" and torch.is_grad_enabled():
        return _not_shaped(result, ()) or (None if _grad(result) else "returned a loss that no gradient flows through")
    if hook == "extra_loss":
        tensors = [extra for extra in result if not isinstance(extra, int | float)]
        return next((wrong for extra in tensors if (wrong := _not_shaped(extra, ()))), None)
    return None


def _grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _not_shaped(value: Any, shape: Any) -> str | None:
    if isinstance(value, Tensor) and value.shape == torch.Size(shape):
        return None
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return f"should return a tensor of shape {tuple(shape)}, not {got}"


def _not_images(value: Any, like: Tensor) -> str | None:
    if wrong := _not_shaped(value, like.shape):
        return wrong
    low, high = value.min().item(), value.max().item()
    if low < 0 or high > 1:
        return f"gave images outside [0, 1]: {low:.3g} to {high:.3g}"
    return None if value.is_floating_point() else f"gave images of type {value.dtype}, not floats in [0, 1]"
