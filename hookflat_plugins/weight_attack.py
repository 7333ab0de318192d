"""Adversarial weight perturbation as the paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hookflat.functional.brackets import in_mode
from hookflat.functional.data import Batch
from hookflat.functional.neighborhood import ball, moved, project, scaled_to
from hookflat.recipe.options import Number
from hookflat.training.run import Run
from hookflat_plugins.random_weights import RandomWeights


@dataclass(eq=False)
class WeightAttack(RandomWeights):
    """AWP in the paper's own form: the mean gradient at `population` attacked weights, clipped entry by entry.

    The attack ascends the whole loss in evaluation mode: nu_l <- P(nu_l + step_size ||w_l|| g_l / ||g_l||), `steps`
    times, P projecting on ||nu_l|| <= xi ||w_l||; the last iterate counts. Its start has a uniform direction and a norm
    uniform in [0, xi ||w_l||]. `awp` is the official form. Population, curricula and clipping as in `random_weights`.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, section 4; protocol 4.1; Wu et al. 2020, arXiv 2004.05884"
    excludes: ClassVar[dict[str, str]] = {"awp": "both are adversarial weight perturbations; use one"}

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer")] = 0.005
    steps: Annotated[int, Field(ge=1, description="of the attack (grid 1, 3, 5)")] = 3
    step_size: Annotated[Number, Field(gt=0, description="relative to ||w_l||; 1: to the boundary at once")] = 0.01
    start: Annotated[Literal["uniform_norm", "zero"], Field(description="of the attack")] = "uniform_norm"

    def perturbation(self, run: Run, batch: Batch, x_adv: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """One attacked perturbation."""
        nu = [torch.zeros_like(w) for w in weights]
        if self.start == "uniform_norm":
            nu = ball(weights, self.xi, run.rng("weight_attack"))
        with in_mode(run.network, train=False):
            for _ in range(self.steps):
                with moved(weights, nu):
                    gradients = run.gradients_at(batch, x_adv, weights)
                step = scaled_to(gradients, weights, self.step_size)
                nu = project([n + s for n, s in zip(nu, step, strict=True)], weights, self.xi)
        return nu
