"""TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Objective, Run, divergence_from_clean, hookimpl, kl_divergence


@dataclass(eq=False)
class Trades:
    """TRADES: CE(f(x), y) + beta KL(p(x) || p(x_adv)), where x_adv maximises that KL.

    The attack works against the attacked network's own clean prediction, detached. Value and gradient of the loss,
    through both predictions, are the official code's; running statistics follow one pass over x and one over x_adv (the
    official code passes x, x_adv and x again).
    """

    paper: ClassVar[str] = "Zhang et al. 2019, arXiv 1901.08573, Eq. 5; github.com/yaodongyu/TRADES"

    beta: Annotated[Number, Field(ge=0, description="weight of the KL term")] = 6.0

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return divergence_from_clean(batch.x)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        logits = run.model(batch.x)
        natural = run.criterion(logits, batch.target).mean()
        return natural + self.beta * kl_divergence(logits, run.model(x_adv)).mean()
