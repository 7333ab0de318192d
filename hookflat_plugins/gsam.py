"""Surrogate gap guided sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, hookimpl, moved, sharpest

_TWO_SAMS = "both are forms of SAM; use one"


@dataclass(eq=False)
class SurrogateGapSam:
    """GSAM: SAM's gradient g_p at w + rho g / ||g||, minus alpha times the part of g (at w) that is orthogonal to g_p.

    The orthogonal part shrinks the gap between the loss at the perturbed weights and at w, and leaves the perturbed
    loss alone. With `rho_min`, rho follows the learning rate: rho_min + (rho - rho_min) lr / lr_max. The other choices
    are those of `sam`.
    """

    paper: ClassVar[str] = "Zhuang et al. 2022, arXiv 2203.08065, Alg. 1; github.com/juntang-zhuang/GSAM"
    off: ClassVar[dict[str, Any]] = {"rho": 0}
    excludes: ClassVar[dict[str, str]] = {
        "sam": _TWO_SAMS,
        "amp": "both ascend the loss over all weights; use one",
        "entropy_sgd": "its inner steps search the neighbourhood themselves; with GSAM at each it is neither",
    }

    rho: Annotated[Number, Field(ge=0, description="L2 radius, at the highest learning rate")] = 0.05
    rho_min: Annotated[Number | None, Field(ge=0, description="at learning rate zero; none: rho throughout")] = None
    alpha: Annotated[Number, Field(ge=0, description="weight of the orthogonal part (0: SAM)")] = 0.4

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.rho == 0:
            return (yield)
        weights = [p for p in run.network.parameters() if p.requires_grad]
        gradients = run.gradients_at(batch, x_adv, weights)
        with moved(weights, sharpest(gradients, self._radius(run))):
            loss = yield
        pairs = [(w.grad, g) for w, g in zip(weights, gradients, strict=True) if w.grad is not None]
        along = torch.stack([(p * g).sum() for p, g in pairs]).sum()
        along = along / torch.stack([p.square().sum() for p, _ in pairs]).sum().clamp_min(1e-24)
        for perturbed, gradient in pairs:
            perturbed.sub_(self.alpha * (gradient - along * perturbed))
        return loss

    def _radius(self, run: Run) -> float:
        if self.rho_min is None:
            return self.rho
        group = run.optimizer.param_groups[0]
        return self.rho_min + (self.rho - self.rho_min) * group["lr"] / group["initial_lr"]
