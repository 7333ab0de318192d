"""Whether all values are finite: seen on the device, read only now and then, so that no step waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from accelerate import Accelerator

_NEVER = 2**62
_MOST = 64
"""Places in a step that are looked at."""


class Finite:
    """Remembers the first step and hook whose result had a NaN or an infinity, and the plugin where it is known."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._places: dict[tuple[str, str], int] = {}  # in the order of a step, which is the same on every process
        self.step = 0

    def see(self, hook: str, *tensors: Tensor, plugin: str = "") -> None:
        """Look at the results of `hook`; costs no synchronisation."""
        code = self.step * _MOST + self._places.setdefault((hook, plugin), len(self._places))
        for tensor in tensors:
            bad = ~tensor.detach().isfinite().all()
            self._first.clamp_max_(torch.where(bad, code, _NEVER))

    def first(self, accelerator: Accelerator) -> tuple[int, str, str] | None:
        """The first bad (step, hook, plugin) on any process."""
        code = int(accelerator.gather(self._first[None]).min())
        return None if code == _NEVER else (code // _MOST, *list(self._places)[code % _MOST])


def first_layer(network: nn.Module, compute: Callable[[], Any]) -> str | None:
    """The layer of `network` where `compute()` first turns finite values into others, told to a user.

    Forward: the first whose output is not finite while its inputs are. Else backward: the one nearest the loss that
    gets a gradient which is not. None where everything is finite, or where what goes in is not.
    """
    order: list[str] = []
    first: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            order.append(name)
            if not first and _finite(args) and not _finite(output):
                first.append(f"the output of layer {name!r} ({type(module).__name__})")

        return hook

    handles: list[RemovableHandle] = [m.register_forward_hook(look(n)) for n, m in network.named_modules() if n]
    before = {n: p.grad for n, p in network.named_parameters()}
    try:
        network.zero_grad(set_to_none=True)
        compute()
        modules = dict(network.named_modules())
        for name in reversed(order) if not first else ():
            for kind, p in modules[name].named_parameters(recurse=False):
                if p.grad is not None and not _finite(p.grad):
                    return f"the gradient of {kind!r} in layer {name!r} ({type(modules[name]).__name__})"
    finally:
        for handle in handles:
            handle.remove()
        for name, p in network.named_parameters():
            p.grad = before[name]
    return first[0] if first else None


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return bool(values.isfinite().all()) if values.is_floating_point() else True
    return all(map(_finite, values)) if isinstance(values, (tuple, list)) else True
