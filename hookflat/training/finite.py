"""Whether all values are finite: seen on the device, read only now and then, so that no step waits."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

_PLACES = ("transform_batch", "craft", "loss", "gradients", "after_step")
_NEVER = 2**62


class Finite:
    """Remembers the first step and hook whose result had a NaN or an infinity."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self.step = 0

    def see(self, hook: str, *tensors: Tensor) -> None:
        """Look at the results of `hook`; costs no synchronisation."""
        code = self.step * len(_PLACES) + _PLACES.index(hook)
        for tensor in tensors:
            bad = ~tensor.detach().isfinite().all()
            self._first.clamp_max_(torch.where(bad, code, _NEVER))

    def first(self, accelerator: Accelerator) -> tuple[int, str] | None:
        """The first bad (step, hook) on any process."""
        code = int(accelerator.gather(self._first[None]).min())
        return None if code == _NEVER else (code // len(_PLACES), _PLACES[code % len(_PLACES)])
