"""Helper-based adversarial training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hookflat import (
    Batch,
    Number,
    Objective,
    Run,
    cross_entropy,
    divergence_from_clean,
    hookimpl,
    kl_divergence,
    teacher_of,
)


@dataclass(eq=False)
class HelperBased:
    """HAT: CE(f(x), y) + beta KL(p(x) || p(x_adv)) + gamma CE(f(x + h (x_adv - x)), argmax g(x_adv)), g the helper.

    The helper is a network trained without attacks; far outside the ball the network learns to say what the helper says
    at its rim, which takes back margin that is larger than needed. The attack maximises TRADES's KL. Examples outside
    the ball may leave [0, 1] and are forwarded as they are, as in the official code.
    """

    paper: ClassVar[str] = "Rade and Moosavi-Dezfooli 2021, openreview BuD2LmNaU3a; github.com/imrahulr/hat"

    helper: Annotated[str, Field(description="folder of a complete run of the recipe standard")] = "runs/standard-0"
    beta: Annotated[Number, Field(ge=0, description="weight of the KL term")] = 2.5
    gamma: Annotated[Number, Field(ge=0, description="weight of the helper's term")] = 0.5
    stretch: Annotated[Number, Field(ge=1, description="how far out the helper's term looks (h)")] = 2.0

    def __post_init__(self) -> None:
        self._helper: nn.Module | None = None

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Any, Any]:
        self._helper = teacher_of(run, self.helper, "loss.helper")
        return (yield)

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return divergence_from_clean(batch.x)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        assert self._helper is not None
        with torch.no_grad():
            told = self._helper(x_adv).argmax(dim=1)
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        outside = run.model(batch.x + self.stretch * (x_adv - batch.x))
        natural = run.criterion(logits, batch.target)
        robust = kl_divergence(logits, logits_adv)
        return (natural + self.beta * robust + self.gamma * cross_entropy(outside, told)).mean()
