"""Whether all values are finite: seen on the device, read only now and then, so that no step waits."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

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
