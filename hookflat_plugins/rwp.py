"""Robust weight perturbation."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, Share, hookimpl, layers, moved

_TWO_PERTURBATIONS = "both are adversarial weight perturbations; use one"
_OTHER_TERMS = "its condition is on the cross-entropy of each example, and this loss has other terms"


@dataclass(eq=False)
class RobustWeightPerturbation:
    """RWP: take the gradient at w + nu, where nu = xi ||w|| D / ||D|| ascends the examples of small loss alone.

    D sums the gradients of mean(l 1[l < threshold]) at w + nu over `steps`, nu following it; l is the training
    cross-entropy of each example, in training mode. One norm over all weights of two or more dimensions, not layer by
    layer as in AWP. MLCAT by weight perturbation is the same with threshold 1.5. Running statistics follow the pass at
    w + nu only, and the optimizer moves w, as in `awp`. 1.7 is for ten classes, where a guess costs 2.3; for CIFAR-100
    the official code has 4.0, as has the scale. It attacks in training mode (`attack.mode = "train"`). Not for TRADES:
    what l is there the code does not say, as it adds the cross-entropies (n,) to the terms (n, K) of the KL, which
    torch refuses.
    """

    paper: ClassVar[str] = "Yu et al. 2022, arXiv 2205.14826 (RWP), 2206.08675 (MLCAT); github.com/ChaojianYu"
    off: ClassVar[dict[str, Any]] = {"xi": 0}
    excludes: ClassVar[dict[str, str]] = {
        "awp": _TWO_PERTURBATIONS,
        "weight_attack": _TWO_PERTURBATIONS,
        "distillation": _OTHER_TERMS,
        "hat": _OTHER_TERMS,
        "ikl": _OTHER_TERMS,
        "lbgat": _OTHER_TERMS,
        "mail": "its condition is on the cross-entropy of each example, and this loss weights that or has other terms",
        "mart": _OTHER_TERMS,
        "trades": _OTHER_TERMS,
        "uat": _OTHER_TERMS,
    }

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of the weights (gamma there)")] = (
        0.01
    )
    threshold: Annotated[Number, Field(ge=0, description="loss below which an example pulls (c_min)")] = 1.7
    steps: Annotated[int, Field(ge=1, description="of the ascent, a pass each (K)")] = 10
    warmup: Annotated[Share, Field(description="share of the training before the first perturbation")] = 0.0

    def __post_init__(self) -> None:
        self._masking = False

    @hookimpl(wrapper=True)
    def criterion(self) -> Generator[None, Tensor, Tensor]:
        losses = yield
        return losses * (losses.detach() < self.threshold) if self._masking else losses

    @hookimpl(wrapper=True)
    def extra_loss(self) -> Generator[None, list[Tensor], list[Tensor]]:
        """No other term pulls, either."""
        terms = yield
        return [0.0 * term for term in terms] if self._masking else terms  # processes wait for every gradient

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        if self.xi == 0 or run.step < self.warmup * run.total_steps:
            return (yield)
        weights = list(layers(run.network, biases=False).values())
        size = torch.nn.utils.get_total_norm([w.detach() for w in weights])
        ascent = [torch.zeros_like(w) for w in weights]
        nu = ascent
        for _ in range(self.steps):
            with moved(weights, nu), self._masked():
                gradients = run.gradients_at(batch, x_adv, weights)
            ascent = [d + g for d, g in zip(ascent, gradients, strict=True)]
            factor = self.xi * size / torch.nn.utils.get_total_norm(ascent).clamp_min(1e-20)
            nu = [factor * d for d in ascent]
        with moved(weights, nu):
            return (yield)

    @contextmanager
    def _masked(self) -> Generator[None]:
        self._masking = True
        try:
            yield
        finally:
            self._masking = False
