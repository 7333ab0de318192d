"""Adversarial model perturbation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, hookimpl, moved


@dataclass(eq=False)
class AdversarialModelPerturbation:
    """AMP: take the gradient at w + nu, where nu ascends the whole loss inside a ball of radius `eps` in every tensor.

    nu_l <- P(nu_l + step_size g_l), `steps` times from 0, with P scaling ||nu_l|| down to `eps`: plain gradients and
    absolute radii, norms and biases included, as in the official code (the paper's Alg. 1 has one ball for all;
    the code's script cuts every gradient to a norm of 50, too). Running statistics follow the pass at the final w + nu
    only.
    """

    paper: ClassVar[str] = "Zheng et al. 2021, arXiv 2010.04925, Alg. 1; github.com/hiyouga/AMP-Regularizer"
    off: ClassVar[dict[str, Any]] = {"eps": 0}
    excludes: ClassVar[dict[str, str]] = {
        "sam": "both ascend the loss over all weights; use one",
        "entropy_sgd": "its inner steps search the neighbourhood themselves; with AMP at each it is neither",
    }

    eps: Annotated[Number, Field(ge=0, description="L2 radius of each tensor")] = 0.5
    step_size: Annotated[Number, Field(gt=0, description="of the ascent (inner_lr there)")] = 1.0
    steps: Annotated[int, Field(ge=1, description="of the ascent (inner_iter there)")] = 1

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.eps == 0:
            return (yield)
        weights = [p for p in run.network.parameters() if p.requires_grad]
        nu = [torch.zeros_like(w) for w in weights]
        for _ in range(self.steps):
            with moved(weights, nu):
                gradients = run.gradients_at(batch, x_adv, weights)
            nu = [self._projected(n + self.step_size * g) for n, g in zip(nu, gradients, strict=True)]
        with moved(weights, nu):
            return (yield)

    def _projected(self, nu: Tensor) -> Tensor:
        return nu * (self.eps / torch.linalg.vector_norm(nu).clamp_min(1e-12)).clamp_max(1)
