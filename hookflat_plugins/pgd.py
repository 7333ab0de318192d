"""Projected gradient descent on the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Objective, Run, hookimpl, pgd


@dataclass(eq=False)
class Pgd(InnerAttack):
    """PGD in the ball of a norm, the inner maximisation of adversarial training.

    delta <- project(delta + step_size direction), starting as the paper does, best iterate kept. The direction is the
    gradient's signs in L-infinity, the gradient over its norm in L2, the signs of its largest values in L1, as many as
    `eps`; the projection is on ball and cube [0, 1] at once. In evaluation mode it attacks a cheaper view of the
    network (batch norm folded); `mode = "train"` normalises by batch statistics, as the AWP and Rice et al.
    repositories do, but leaves the running statistics alone. One step from a uniform start with alpha = 1.25 and the
    last iterate is FGSM as in fast AT (Wong et al. 2020), whose code attacks in training mode. With `cycle_detection`
    (Doldo et al. 2025) an example that comes back to a point is passed no more: the same x_adv, in fewer passes where
    steps are many.
    """

    paper: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083; protocol of Stutz et al. 2021, section 2"

    restarts: Annotated[int, Field(ge=1, description="random starts")] = 1
    keep: Annotated[Literal["best", "last"], Field(description="the iterate returned")] = "best"
    cycle_detection: Annotated[bool, Field(description="stop examples that walk in circles (keep best, mode eval)")] = (
        False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cycle_detection and (self.keep == "last" or self.mode == "train"):
            raise ValueError('cycle_detection: needs keep = "best" and mode = "eval"')

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        attack, options = self.attack(restarts=self.restarts), self.options(run, batch)
        options |= {"keep": self.keep, "cycle_detection": self.cycle_detection}
        return pgd(self.attacked(run), batch.x, attack=attack, objective=objective, **options)
