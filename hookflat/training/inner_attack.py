"""What plugins of the `[attack]` slot share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from hookflat.functional.balls import Start
from hookflat.functional.choices import Norm, Precision, check_radius
from hookflat.functional.data import Batch
from hookflat.functional.threats import Attack, Threat
from hookflat.recipe.options import Number
from hookflat.training.run import Run


@dataclass(eq=False)
class InnerAttack:
    """The options of gradient attacks during training: radius, steps, and the network that is attacked."""

    norm: Annotated[Norm, Field(description="of the threat; measures take it too, where [eval] names none")] = "Linf"
    eps: Annotated[Number, Field(ge=0, description="radius, images in [0, 1]")] = 8 / 255
    eps_factor: Annotated[Number, Field(gt=0, description="multiplies eps, at every scale; measures keep theirs")] = 1.0
    step_size: Annotated[Number, Field(gt=0, description="length of a step, in the norm")] = 0.007
    alpha: Annotated[Number, Field(ge=0, description="length of a step in units of eps; 0: step_size")] = 0.0
    steps: Annotated[int, Field(ge=0, description="iterations")] = 7
    start: Annotated[Start, Field(description="the paper's, Madry's, TRADES's, or none")] = "uniform_norm"
    mode: Annotated[Literal["eval", "train"], Field(description="of the attacked network's batch norm")] = "eval"
    precision: Annotated[Precision, Field(description="in mode eval; auto: bf16 where it pays")] = "fp32"
    compile: Annotated[bool, Field(description="attack a torch.compile'd network (mode eval)")] = False

    def __post_init__(self) -> None:
        check_radius(self.norm, self.eps)

    def attack(self, restarts: int = 1) -> Attack:
        """As a value."""
        eps = self.eps * self.eps_factor
        step_size = self.alpha * eps if self.alpha else self.step_size
        return Attack(Threat(eps, self.norm), step_size, self.steps, restarts, self.start)

    @property
    def reach(self) -> float:
        """How far from its start all steps together come at most, in units of the radius."""
        attack = self.attack()
        return attack.steps * attack.step_size / attack.threat.eps if attack.threat.eps else math.inf

    def attacked(self, run: Run) -> nn.Module:
        """The network in training, or the run's view of it for attacks."""
        return run.network if self.mode == "train" else run.attack_view(precision=self.precision, compile=self.compile)

    def options(self, run: Run, batch: Batch) -> dict[str, Any]:
        """The other arguments that attack functions take: mode, seed and the keys of the examples."""
        return {"mode": self.mode, "seed": run.seed("attack"), "keys": batch.row}
