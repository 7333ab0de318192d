"""Adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, Share, hookimpl, layers, moved, scaled_to


@dataclass(eq=False)
class AdversarialWeightPerturbation:
    """AWP: take the gradient at w + nu, where nu_l = xi ||w_l|| g_l / ||g_l|| ascends the training loss.

    One ascent step on the batch's whole loss in training mode (for TRADES, the TRADES loss), layer by layer, on
    weights of two or more dimensions; running statistics follow the pass at w + nu only (the official AT code's
    attack, and a clean pass for its log, move them too). The weights are back at w, bit for bit, before the optimizer
    moves them (the official code moves w + nu and then subtracts nu: weight decay there sees w + nu).
    """

    paper: ClassVar[str] = "Wu et al. 2020, arXiv 2004.05884, Eq. 8-10; github.com/csdongxian/AWP"
    off: ClassVar[dict[str, Any]] = {"xi": 0}

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer (gamma there)")] = 0.01
    warmup: Annotated[Share, Field(description="share of the training before the first perturbation")] = 0.0

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.xi == 0 or run.step < self.warmup * run.total_steps:
            return (yield)
        weights = list(layers(run.network, biases=False).values())
        nu = scaled_to(run.gradients_at(batch, x_adv, weights), weights, self.xi)
        with moved(weights, nu):
            return (yield)
