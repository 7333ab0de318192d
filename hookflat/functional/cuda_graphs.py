"""CUDA graphs for attacks: a pass forward and back to the images is two launches instead of hundreds.

A GPU is done with the small kernels of such a pass before Python has launched the next ones. The graphs run the same
kernels on the same memory: weights that changed in place since are seen.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor, nn

SWITCH = "HOOKFLAT_CUDA_GRAPHS"
"""Set to 0 in the environment: no graphs."""

AFTER = 3
"""Passes over a shape of images before it is captured: what comes once is not worth it."""

MOST = 4
"""Shapes that are kept captured, those used last: each holds the activations of a pass."""


def possible(device: torch.device) -> bool:
    """Whether graphs can be captured: on a GPU, by a process that is alone (others' messages would break captures)."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return device.type == "cuda" and alone and os.environ.get(SWITCH, "1") != "0"


class Graphs:
    """The graphs of a frozen network in evaluation mode, one for each shape of images."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, int] = {}
        self._captured: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._broken = False

    def of(self, net: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Computes what `net` does of images like `x`; None where it must compute them itself.

        What it gave is overwritten by the next call, and so are the activations that its gradient needs.
        """
        if self._broken:
            return None
        # a graph keeps the kernels that it was captured with
        backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # ty: ignore[missing-attribute]
        kind = x.shape, x.dtype, *(b.fp32_precision for b in backends), torch.are_deterministic_algorithms_enabled()
        if kind in self._captured:
            self._captured[kind] = graph = self._captured.pop(kind)  # the one used last
            return graph
        self._seen[kind] = self._seen.get(kind, 0) + 1
        return self._capture(net, x, kind) if self._seen[kind] > AFTER else None

    def _capture(self, net: nn.Module, x: Tensor, kind: Hashable) -> Callable[[Tensor], Tensor] | None:
        while len(self._captured) >= MOST:
            del self._captured[next(iter(self._captured))]
        try:
            sample = x.detach().clone().requires_grad_()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of streams: the sample's is not the capture's
                graphed = torch.cuda.make_graphed_callables(net.forward, (sample,))  # a module itself would be changed
        except Exception as error:  # a network that asks the device for something, or no memory left for its graph
            self._broken = True
            self._captured.clear()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(f"no CUDA graph of the attacked network, it runs as it is: {reason}", stacklevel=2)
            return None
        self._captured[kind] = graph = cast(Callable[[Tensor], Tensor], graphed)
        return graph


class Once(nn.Module):
    """`net` for one pass forward and back to the images, through `graphs` where that is possible.

    Further passes of the same objective are `net`'s own: there is one set of activations.
    """

    def __init__(self, net: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.net, self._graphs, self._used = net, graphs, False

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        first, self._used = not self._used, True
        alike = first and x.requires_grad and torch.is_grad_enabled()
        graph = self._graphs.of(self.net, x) if alike else None
        return self.net(x) if graph is None else graph(_Own.apply(x)).clone()


class _Own(torch.autograd.Function):
    """The identity, with a gradient in memory of its own: graphs overwrite theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0].clone()
