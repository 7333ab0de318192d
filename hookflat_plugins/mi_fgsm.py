"""PGD with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Number, Objective, Run, Start, hookimpl, pgd


@dataclass(eq=False)
class MomentumPgd(InnerAttack):
    """MI-FGSM, PGD with momentum: g <- mu g + grad / ||grad||_1, x_adv <- P(x_adv + step_size sign(g)).

    The original starts at the image, keeps the last iterate and has steps of eps / `steps`: start = "zero",
    keep = "last", alpha = 1 / steps, the defaults but for the steps' length. TRADES's divergence, which other losses
    share, has no gradient at the image: with those, set start = "uniform".
    """

    paper: ClassVar[str] = "Dong et al. 2018, arXiv 1710.06081, Alg. 1"

    start: Annotated[Start, Field(description="the paper's of flatness, Madry's, TRADES's, or none")] = "zero"
    decay: Annotated[Number, Field(ge=0, description="of the accumulated gradient (mu)")] = 1.0
    keep: Annotated[Literal["best", "last"], Field(description="the iterate returned")] = "last"

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        attack, options = self.attack(), self.options(run, batch)
        options |= {"keep": self.keep, "momentum": self.decay}
        return pgd(self.attacked(run), batch.x, attack=attack, objective=objective, **options)
