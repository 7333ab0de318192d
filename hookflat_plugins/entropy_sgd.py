"""Entropy-SGD."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hookflat import Decay, Number, Run, hookimpl, normals_like


@dataclass(eq=False)
class EntropySgd:
    """Entropy-SGD: every outer step follows the mean of `langevin_steps` noisy steps around the weights.

    Inner steps are ordinary training steps, each on its own batch, attacked at the weights of that moment. Measures,
    and plugins that run after a step, see the outer weights only. Momentum, schedule (on the outer rate) and scoping
    act, unlike in the paper's released code (protocol 4.2 and quirk 4). Outer momentum starts at zero.
    """

    paper: ClassVar[str] = "Chaudhari et al. 2017, arXiv 1611.01838, Alg. 1; github.com/ucla-vision/entropy-sgd"

    lr: Annotated[Number, Field(gt=0, description="outer learning rate before any schedule")] = 0.05
    langevin_steps: Annotated[int, Field(ge=1, description="inner steps for each outer one (L)")] = 5
    inner_lr: Annotated[Number, Field(gt=0, description="learning rate of the inner steps")] = 0.1
    gamma: Annotated[Number, Field(ge=0, description="pull back to the outer weights")] = 1e-4
    scoping: Annotated[Number, Field(ge=0, description="growth of gamma with every outer step")] = 1e-3
    noise: Annotated[Number, Field(ge=0, description="scale of the Langevin noise")] = 1e-4
    averaging: Annotated[Decay, Field(description="decay of the running mean of the inner weights (beta1)")] = 0.75
    momentum: Annotated[Decay, Field(description="Nesterov, of inner and outer steps")] = 0.9
    weight_decay: Annotated[Number, Field(ge=0, description="L2 penalty, on norms and biases too")] = 5e-4

    @hookimpl
    def build_optimizer(self, run: Run, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return EntropySGD(parameters, noise_from=lambda: run.rng("entropy_sgd"), **options)

    @hookimpl
    def eval_model(self, run: Run) -> nn.Module | None:
        """Between outer steps, a copy of the network at the outer weights."""
        if not run.mid_cycle:
            return None
        at_anchor = copy.deepcopy(run.network)
        state = run.optimizer.optimizer.state
        with torch.no_grad():
            for live, p in zip(run.network.parameters(), at_anchor.parameters(), strict=True):
                if live in state:
                    p.copy_(state[live]["anchor"])
        return at_anchor


class EntropySGD(torch.optim.Optimizer):
    """One inner Langevin step a call, and the outer step with the last of each `langevin_steps`.

    All parameters at once, by torch's operations on lists: a GPU would wait for one operation after another.
    """

    def __init__(
        self, params: list[nn.Parameter], *, noise_from: Callable[[], torch.Generator], **options: Any
    ) -> None:
        super().__init__(params, {"inner": 0, "outer": 0} | options)
        self.noise_from = noise_from

    @property
    def mid_cycle(self) -> bool:
        """Whether the weights are those of an inner step."""
        return self.param_groups[0]["inner"] > 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # ty: ignore[incompatible-method-override]
        """One inner step from the gradients there are, and the outer step when the cycle is full."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            if group["inner"] == 0:
                self._begin(group)
            self._inner_step(group)
            group["inner"] += 1
            if group["inner"] == group["langevin_steps"]:
                self._outer_step(group)
                group["inner"] = 0
                group["outer"] += 1

    def _begin(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            state = self.state[p]
            state["anchor"], state["mean"] = p.clone(), p.clone()
            state["inner_momentum"] = torch.zeros_like(p)
            state.setdefault("momentum", torch.zeros_like(p))

    def _inner_step(self, group: dict[str, Any]) -> None:
        params, gamma = group["params"], group["gamma"] * (1 + group["scoping"]) ** group["outer"]
        scale = group["noise"] / math.sqrt(0.5 * group["inner_lr"])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        changes = _with_momentum(gradients, params, self._each(group, "inner_momentum"), group)
        pulls = torch._foreach_sub(self._each(group, "anchor"), params)
        torch._foreach_mul_(pulls, gamma)
        torch._foreach_sub_(changes, pulls)
        del pulls  # room for the noise
        noises = normals_like(params, self.noise_from())
        torch._foreach_mul_(noises, scale)
        torch._foreach_add_(changes, noises)
        torch._foreach_mul_(changes, group["inner_lr"])
        torch._foreach_sub_(params, changes)
        torch._foreach_lerp_(self._each(group, "mean"), params, 1 - group["averaging"])

    def _outer_step(self, group: dict[str, Any]) -> None:
        params = group["params"]
        torch._foreach_copy_(params, self._each(group, "anchor"))
        ways = list(torch._foreach_sub(params, self._each(group, "mean")))
        changes = _with_momentum(ways, params, self._each(group, "momentum"), group)
        torch._foreach_mul_(changes, group["lr"])
        torch._foreach_sub_(params, changes)

    def _each(self, group: dict[str, Any], name: str) -> list[Tensor]:
        return [self.state[p][name] for p in group["params"]]


def _with_momentum(
    gradients: list[Tensor], params: list[Tensor], buffers: list[Tensor], group: dict[str, Any]
) -> list[Tensor]:
    """Weight decay and Nesterov momentum; moves `buffers`."""
    decayed = torch._foreach_mul(params, group["weight_decay"])
    torch._foreach_add_(decayed, gradients)
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_add_(buffers, decayed)
    changes = torch._foreach_mul(buffers, group["momentum"])
    torch._foreach_add_(changes, decayed)
    return list(changes)
