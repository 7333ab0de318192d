"""Friendly sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Decay, Number, Run, hookimpl, moved, sharpest


@dataclass(eq=False)
class FriendlySam:
    """F-SAM: take the gradient at w + rho d / ||d||, d = g - sigma m: the batch's gradient without the part all share.

    m is a moving average of gradients at w, m <- lambda m + (1 - lambda) g, that of the steps before, as in the
    official code (with this step's g in it d points the same way at sigma = 1, and there alone); in the first step
    d = g = m, and again where m is of a step that float16 cancelled. The other choices are those of `sam`.
    """

    paper: ClassVar[str] = "Li et al. 2024, arXiv 2403.12350, Alg. 1; github.com/nblt/F-SAM"
    off: ClassVar[dict[str, Any]] = {"rho": 0}
    excludes: ClassVar[dict[str, str]] = {
        "sam": "both are forms of SAM; use one",
        "gsam": "both are forms of SAM; use one",
        "amp": "both ascend the loss over all weights; use one",
        "entropy_sgd": "its inner steps search the neighbourhood themselves; with F-SAM at each it is neither",
    }

    rho: Annotated[Number, Field(ge=0, description="L2 radius (0.2 in the official runs)")] = 0.05
    sigma: Annotated[Number, Field(ge=0, description="share of the average that is taken off (0: SAM)")] = 1.0
    decay: Annotated[Decay, Field(description="of the average at each step (lambda; 0.6 to 0.95)")] = 0.9

    def __post_init__(self) -> None:
        self._mean: list[Tensor] | None = None

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.rho == 0:
            return (yield)
        weights = [p for p in run.network.parameters() if p.requires_grad]
        with moved(weights, sharpest(self._direction(run.gradients_at(batch, x_adv, weights)), self.rho)):
            return (yield)

    def _direction(self, gradients: list[Tensor]) -> list[Tensor]:
        if self._mean is None:
            self._mean = gradients
            return gradients
        pairs = [(g, m.to(g)) for g, m in zip(gradients, self._mean, strict=True)]
        known = torch.nn.utils.get_total_norm([m for _, m in pairs]).isfinite()
        self._mean = [torch.where(known, self.decay * m + (1 - self.decay) * g, g) for g, m in pairs]
        return [torch.where(known, g - self.sigma * m, g) for g, m in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = state["mean"]
