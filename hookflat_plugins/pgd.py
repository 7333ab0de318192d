"""Projected gradient descent on the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hookflat import hookimpl
from hookflat.functional import attacks
from hookflat.functional.attack_view import AttackView
from hookflat.functional.attacks import Objective, Start
from hookflat.functional.data import Batch
from hookflat.recipe.options import Number
from hookflat.training.run import Run


@dataclass(eq=False)
class GradientAttack:
    """What PGD and its variants share: radius, steps, and the network that is attacked."""

    eps: Annotated[Number, Field(ge=0, le=1, description="L-infinity radius, images in [0, 1]")] = 8 / 255
    eps_factor: Annotated[Number, Field(gt=0, description="multiplies eps, at every scale; measures keep theirs")] = 1.0
    step_size: Annotated[Number, Field(gt=0, description="length of a step in every pixel")] = 0.007
    alpha: Annotated[Number, Field(ge=0, description="length of a step in units of eps; 0: step_size")] = 0.0
    steps: Annotated[int, Field(ge=0, description="iterations")] = 7
    start: Annotated[Start, Field(description="the paper's, Madry's, TRADES's, or none")] = "uniform_norm"
    mode: Annotated[Literal["eval", "train"], Field(description="of the attacked network's batch norm")] = "eval"
    bf16: Annotated[bool, Field(description="attack in bfloat16 (mode eval)")] = False
    compile: Annotated[bool, Field(description="attack a torch.compile'd network (mode eval)")] = False

    def __post_init__(self) -> None:
        self._own_view: AttackView | None = None
        self._own_step = -1

    def attacked(self, run: Run) -> nn.Module:
        """The network in training, the run's attack view, or one of our own where it must be faster than exact."""
        if self.mode == "train":
            return run.network
        if not (self.bf16 or self.compile):
            return run.attack_model
        if self._own_view is None:
            self._own_view = AttackView(run.network, bf16=self.bf16, compile=self.compile)
        if self._own_step != run.step:
            self._own_view.refresh()
            self._own_step = run.step
        return self._own_view

    def common(self, run: Run, batch: Batch) -> dict[str, Any]:
        """Arguments that every attack function takes."""
        eps = self.eps * self.eps_factor
        return {
            "eps": eps,
            "step_size": self.alpha * eps if self.alpha else self.step_size,
            "steps": self.steps,
            "start": self.start,
            "mode": self.mode,
            "seed": run.seed("attack"),
            "keys": batch.row,
        }


@dataclass(eq=False)
class Pgd(GradientAttack):
    """PGD in the L-infinity ball, the inner maximisation of adversarial training.

    delta <- clip(delta + step_size sign(grad)), starting as the paper does, best iterate kept. In evaluation mode it
    attacks a cheaper view of the network (batch norm folded); `mode = "train"` normalises by batch statistics, as the
    AWP and Rice et al. repositories do, but leaves the running statistics alone. One step from a uniform start with
    alpha = 1.25 and the last iterate is FGSM as in fast AT (Wong et al. 2020).
    """

    paper: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083; protocol of Stutz et al. 2021, section 2"

    restarts: Annotated[int, Field(ge=1, description="random starts")] = 1
    keep: Annotated[Literal["best", "last"], Field(description="the iterate returned")] = "best"

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        model, options = self.attacked(run), self.common(run, batch)
        return attacks.pgd(model, batch.x, restarts=self.restarts, keep=self.keep, objective=objective, **options)
