"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, hookimpl, moved, sharpest


@dataclass(eq=False)
class SharpnessAware:
    """SAM on the robust loss: take the gradient at w + rho g / ||g||, over all weights at once.

    `adaptive` is ASAM: w + rho T^2 g / ||T g|| with T = |w| + eta for weights of two or more dimensions and 1 for the
    others (the official code stretches the scales of norms too); nearly invariant to rescaling of weights, not of
    biases. One ascent step on the whole loss of the global batch in training mode (not of each process's part,
    "m-sharpness"), without the L2 penalty (the official SAM code has it in the ascent); running statistics follow the
    pass at the perturbed weights only (there: the pass at w).
    """

    paper: ClassVar[str] = "Foret et al. 2021, arXiv 2010.01412, Eq. 2; Kwon et al. 2021, arXiv 2102.11600"
    off: ClassVar[dict[str, Any]] = {"rho": 0}
    excludes: ClassVar[dict[str, str]] = {
        "entropy_sgd": "its inner steps search the neighbourhood themselves; with SAM at each it is neither"
    }

    rho: Annotated[Number, Field(ge=0, description="L2 radius (SAM: 0.05; ASAM: 0.5 to 1)")] = 0.05
    adaptive: Annotated[bool, Field(description="ASAM")] = False
    eta: Annotated[Number, Field(ge=0, description="added to |w| in ASAM")] = 0.01

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.rho == 0:
            return (yield)
        weights = [p for p in run.network.parameters() if p.requires_grad]
        gradients = run.gradients_at(batch, x_adv, weights)
        with moved(weights, sharpest(gradients, self.rho, self._scales(weights) if self.adaptive else None)):
            return (yield)

    def _scales(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [w.detach().abs() + self.eta if w.dim() > 1 else torch.ones_like(w) for w in weights]
