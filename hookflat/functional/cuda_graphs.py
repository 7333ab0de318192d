"""CUDA graphs: a pass forward and back, to the images or to the weights, is two launches instead of hundreds.

A GPU is done with the small kernels of such a pass before Python has launched the next ones. The graphs run the same
kernels on the same memory: weights that changed in place since are seen.
"""

from __future__ import annotations

import gc
import inspect
import os
import warnings
import weakref
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hookflat.functional.brackets import draws_undone
from hookflat.functional.layers import AuxiliaryHead

SWITCH = "HOOKFLAT_CUDA_GRAPHS"
"""Set to 0 in the environment: no graphs."""

AFTER = 3
"""Passes over a shape of images before it is captured: what comes once is not worth it."""

MOST = 4
"""Shapes that are kept captured, those used last: each holds the activations of a pass."""

PASSES = 8
"""The same of training passes: what one loss has under way at once, for its full batches and its last one."""


def possible(device: torch.device) -> bool:
    """Whether graphs can be captured: on a GPU, by a process that is alone (others' messages would break captures)."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = not together or torch.distributed.get_world_size() == 1
    return device.type == "cuda" and alone and os.environ.get(SWITCH, "1") != "0"


def recomputes(module: nn.Module) -> bool:
    """Whether it computes its activations again for the pass back, as timm's networks may: no capture holds that."""
    return bool(getattr(module, "grad_checkpointing", False))


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
        kind = x.shape, x.dtype, *_kernels()
        if kind in self._captured:
            self._captured[kind] = graph = self._captured.pop(kind)  # the one used last
            return graph
        self._seen[kind] = self._seen.get(kind, 0) + 1
        return self._capture(net, x, kind) if self._seen[kind] > AFTER else None

    def release(self) -> None:
        """Give their memory back; what comes again is captured again."""
        if self._captured:
            self._captured.clear()
            _free()

    def _capture(self, net: nn.Module, x: Tensor, kind: Hashable) -> Callable[[Tensor], Tensor] | None:
        while len(self._captured) >= MOST:
            del self._captured[next(iter(self._captured))]
        try:
            _free()
            sample = x.detach().clone().requires_grad_()
            with _capturing(x.device), torch.enable_grad():
                graphed = _captured(net.forward, (sample,))  # a module itself would be changed
        except Exception as error:  # a network that asks the device for something, or no memory left for its graph
            self._broken = True
            self._captured.clear()
            _free()
            _warn("attacked network", error)
            return None
        self._captured[kind] = graph = cast(Callable[[Tensor], Tensor], graphed)
        return graph


def _kernels() -> tuple[Hashable, ...]:
    """What decides which kernels run: a graph keeps those that it was captured with."""
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # ty: ignore[missing-attribute]
    cudnn = torch.backends.cudnn
    chosen = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    return *(b.fp32_precision for b in backends), *chosen, torch.is_autocast_enabled("cuda")


@contextmanager
def _capturing(device: torch.device) -> Generator[None]:
    """Inside, kernels go to this device, whichever is the current one; after a failure, to the stream from before.

    What cuBLAS works in is the graph's own: it would be a stream's, and graphs that are captured on the same of torch's
    32 streams would lose it when one of them goes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of streams: the sample's is not the capture's
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            torch._C._cuda_clearCublasWorkspaces()
            try:
                yield
            except Exception:
                torch.cuda.set_stream(before)  # a capture that fails leaves its own
                raise
            finally:
                torch._C._cuda_clearCublasWorkspaces()


def _captured(forward: Callable[..., Tensor], samples: tuple[Tensor, ...], **options: Any) -> Callable[..., Tensor]:
    """The graphs of one pass forward and back; where torch can, other threads, as a loader's that pins, go on."""
    others = tuple(s.detach().requires_grad_(s.requires_grad) for s in samples)  # a pass may leave something behind
    with draws_undone():
        _warmed(forward, others)
    capture = torch.cuda.make_graphed_callables
    if "capture_error_mode" in inspect.signature(capture).parameters:
        options["capture_error_mode"] = "thread_local"
    return cast(Callable[..., Tensor], capture(forward, samples, num_warmup_iters=0, **options))


def _warmed(forward: Callable[..., Tensor], samples: tuple[Tensor, ...]) -> None:
    """One pass forward and back, so that a capture loads nothing.

    Raises RuntimeError for what asks the device for something: a capture would fail of it, and leave traces.
    """
    on_gpu = samples[0].device.type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        logits = forward(*samples)
        learning = [s for s in samples if s.requires_grad]
        torch.autograd.grad(logits, learning, torch.zeros_like(logits), allow_unused=True)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(before)


def _free() -> None:
    """Give the memory of graphs that were dropped back: each is in a circle of references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _warn(what: str, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(f"no CUDA graph of the {what}, it runs as it is: {reason}", stacklevel=3)


class Once(nn.Module):
    """`net` for one pass forward and back to the images, through `graphs` where that is possible.

    So are passes before it that ask for no gradient. Further ones of the same objective are `net`'s own: there is one
    set of activations.
    """

    def __init__(self, net: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.net, self._graphs, self._used = net, graphs, False

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        gradient = torch.is_grad_enabled()
        asked = x.requires_grad or not gradient
        graph = self._graphs.of(self.net, x) if asked and not self._used else None
        self._used = self._used or gradient
        if graph is None:
            return self.net(x)
        return graph(_Own.apply(x) if gradient else x.detach()).clone()


class _Own(torch.autograd.Function):
    """The identity, with a gradient in memory of its own, asked for once: graphs overwrite theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.done = False
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        if ctx.done:
            raise RuntimeError(f"a CUDA graph gives the gradient of a pass once; {SWITCH}=0: no graphs")
        ctx.done = True
        return gradients[0].clone()


class Replayed(nn.Module):
    """`net` as training losses call it: forward and back to the weights through graphs, where that is possible.

    Each pass whose gradient is still to come has activations of its own. What is asked for the gradient by images, or
    without gradients, is `net`'s own, and so are passes of networks that someone looks into or that draw at random.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._seen: dict[Hashable, int] = {}
        self._passes: list[_Pass] = []
        self._broken = False

    def forward(self, x: Tensor) -> Tensor:
        """What `net` says."""
        asked = torch.is_grad_enabled() and not x.requires_grad and not self._broken
        replay = self._pass_over(x) if asked else None
        return self.net(x) if replay is None else replay(x)

    def release(self) -> None:
        """Give the memory of all passes back, where no gradient of them is to come; they are captured again."""
        if self._passes:
            self._passes.clear()
            _free()

    def _pass_over(self, x: Tensor) -> _Pass | None:
        """One that is free, captured if it has to be; None where `net` must compute it."""
        kind = self._kind(x)
        if kind is None:
            return None
        if free := next((p for p in self._passes if p.kind == kind and p.free), None):
            self._passes.remove(free)
            self._passes.append(free)  # the one used last
            return free
        if len(self._seen) > 100:  # weights that wander through memory are never the same
            self._seen.clear()
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= AFTER:
            return None
        del self._passes[: max(0, len(self._passes) - PASSES + 1)]
        try:
            _free()
            self._passes.append(made := _Pass(self.net, x, kind))
        except Exception as error:  # a network that asks the device for something, or no memory left for its graph
            self._broken = True
            self._passes.clear()
            _free()
            _warn("network in training", error)
            return None
        return made

    def _kind(self, x: Tensor) -> Hashable | None:
        """All that a graph keeps as it was captured; None where there must be no graph."""
        tensors, settings = [], []
        for module in self.net.modules():
            watched = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p
            draws = dropout or getattr(module, "drop_prob", None)
            if watched or draws or isinstance(module, AuxiliaryHead) or recomputes(module):
                return None
            tensors += [(t.data_ptr(), t.requires_grad) for t in module._parameters.values() if t is not None]
            tensors += [t.data_ptr() for t in module._buffers.values() if t is not None]
            settings += [id(module), *(v for v in vars(module).values() if type(v) in _SETTINGS)]
        return x.shape, x.stride(), x.dtype, tuple(tensors), tuple(settings), *_kernels()


_SETTINGS = {bool, int, float, str}


class _Pass:
    """A captured pass over images like `x`, forward and back to the weights that learn: one set of activations."""

    def __init__(self, net: nn.Module, x: Tensor, kind: Hashable) -> None:
        weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.kind, self._weights = kind, [*weights.values()]
        self._pending: Callable[[], _Pending | None] = lambda: None
        # leaves of its own, on the weights' memory: those of passes under way belong to another stream
        leaves = [w.detach().requires_grad_() for w in self._weights]

        def forward(x: Tensor, *leaves: Tensor) -> Tensor:
            return torch.func.functional_call(net, dict(zip(weights, leaves, strict=True)), (x,))

        statistics = [b.data for b in net.buffers()]  # `data`: gradients of passes under way do not see the change
        before = [s.clone() for s in statistics]
        try:
            with _capturing(x.device):
                samples = (x.detach().clone(), *leaves)
                self._graph = _captured(forward, samples, allow_unused_input=True)
        finally:
            for statistic, value in zip(statistics, before, strict=True):
                statistic.copy_(value)  # capturing takes passes

    @property
    def free(self) -> bool:
        """Whether no gradient of it is still to come."""
        pending = self._pending()
        return pending is None or pending.done

    def __call__(self, x: Tensor) -> Tensor:
        pending = _Pending()
        self._pending = weakref.ref(pending)
        return _Answered.apply(pending, self._graph(x, *_Learning.apply(*self._weights)))


class _Pending:
    """Lives as long as the gradient of a pass may still be asked for."""

    done = False


class _Answered(torch.autograd.Function):
    """The identity, in memory of its own; its gradient is asked for once."""

    @staticmethod
    def forward(ctx: Any, pending: _Pending, logits: Tensor) -> Tensor:
        ctx.pending = pending
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.pending.done:
            raise RuntimeError(f"a CUDA graph gives the gradient of a training pass once; {SWITCH}=0: no graphs")
        ctx.pending.done = True
        return None, gradients[0]


class _Learning(torch.autograd.Function):
    """The identity on weights, with gradients in memory of their own."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(w.view_as(w) for w in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        there = [g for g in gradients if g is not None]
        own = iter(torch._foreach_mul(there, 1.0) if there else ())
        return tuple(g if g is None else next(own) for g in gradients)
