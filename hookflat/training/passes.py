"""Training passes: the network in the run's precision, and float16's loss scale."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hookflat.functional import cuda_graphs
from hookflat.functional.brackets import draws_undone, restored
from hookflat.functional.cuda_graphs import Replayed
from hookflat.functional.layers import Autocast
from hookflat.functional.winograd import WinogradConvolutions, pays
from hookflat.recipe.recipe import RunOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

LOWEST_SCALE = 1.0
"""Of the loss in float16: where passes are not finite even there, the cause is another."""


class Compiled(nn.Module):
    """`net` through `torch.compile`, or as it is where `works` says that it cannot be compiled."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._run: tuple[Callable[[Tensor], Tensor], ...] = (torch.compile(net),)  # in a tuple: no submodule of its own

    def forward(self, x: Tensor) -> Tensor:
        """What `net` says."""
        return self._run[0](x)

    def try_on(self, x: Tensor, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        """A pass forward and back over `x` in training mode; where it fails, no process compiles, and why is said.

        Leaves no trace.
        """
        failed = None
        try:
            with restored(self.net.buffers()), draws_undone(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self(x).sum().backward()
        except Exception as error:  # no compiler, or a network that it cannot take
            failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.net.zero_grad()
        if accelerator.reduce(torch.tensor(float(failed is not None), device=x.device), "sum"):
            self.plain()
            why = failed or "on another process"
            say(f"run.compile: torch.compile failed, the network trains uncompiled: {why}")

    def plain(self) -> None:
        """Compile no more."""
        self._run = (self.net,)


def in_precision(network: nn.Module, options: RunOptions) -> nn.Module:
    """The network as training passes call it."""
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if options.precision not in low and not options.compile and any(pays(module) for module in network.modules()):
        return WinogradConvolutions(network)
    model = Autocast(network, low[options.precision]) if options.precision in low else network
    if options.compile:
        return Compiled(model)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return Replayed(model) if cuda_graphs.possible(device) else model


class LossScale:
    """Float16's: losses are scaled up, so that gradients do not vanish; a step with an overflow is cancelled.

    Outside of a backward pass `.grad` holds gradients at their own size, so that weight perturbations, clipping and
    plugins see what they would in float32. The scale is a power of two: multiplying by it and dividing is exact. It is
    torch's, which accelerate's optimizer steps with.
    """

    def __init__(self, accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
        self.accelerator, self.parameters = accelerator, list(parameters)
        self._scaler = accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
        # torch warns where the first step is cancelled: the schedule then counts a step that the optimizer did not make
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        self.cancelled = 0  # steps of this epoch
        self._scale: float | None = None
        self._overflow = torch.zeros((), device=accelerator.device)
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scaler": self._scaler.state_dict(), "cancelled": self.cancelled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._scaler.load_state_dict(state["scaler"])
        self.cancelled, self._scale = state["cancelled"], None

    @property
    def scale(self) -> float:
        """Of losses, now."""
        if self._scale is None:  # only a step changes it, and to ask a GPU is to wait for it
            self._scale = self._scaler.get_scale()
        return self._scale

    def begin(self, network: nn.Module) -> None:
        """A step begins: remember the running statistics."""
        self._overflow.zero_()
        self._buffers = [(b, b.detach().clone()) for b in network.buffers()]

    def see(self, value: Tensor) -> None:
        """A result of this step's; where it is not finite, the step will be cancelled."""
        self._overflow.clamp_min_((~value.detach().isfinite().all()).float())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, at their own size."""
        self._multiply(self.scale)
        self.accelerator.backward(loss)
        self._multiply(1 / self.scale)

    def _multiply(self, factor: float) -> None:
        if gradients := [p.grad for p in self.parameters if p.grad is not None]:
            torch._foreach_mul_(gradients, factor)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step, unless something was not finite on any process; whether the step was cancelled.

        Then weights and optimizer are not touched, and running statistics are those before the step.
        """
        overflow = self.accelerator.reduce(self._overflow, "sum")
        self._multiply(self.scale)  # the optimizer divides by it
        if gradients := [p.grad for p in self.parameters if p.grad is not None]:
            gradients[0].add_(torch.where(overflow > 0, torch.inf, 0.0))  # what tells torch's scaler of every pass
        optimizer.step()
        self._scale = None
        if not getattr(optimizer, "step_was_skipped", False):
            return False
        self.cancelled += 1
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the scale has no room left: the cause is another."""
        return self.scale < LOWEST_SCALE
