"""One step from noise that the ball does not hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Number, Objective, Run, frozen, gradient_at, hookimpl


@dataclass(eq=False)
class NoisyFgsm(InnerAttack):
    """N-FGSM: x_adv = clip(x + eta + alpha eps sign(g), 0, 1), eta uniform in the ball of k eps, g the gradient there.

    Without projection on the ball of eps, which keeps single-step training from catastrophic overfitting: examples lie
    up to (k + alpha) eps away. The noise is cut to [0, 1] first, as in the official code, which attacks in training
    mode. One step, whatever `steps` and `start` say; `alpha` 0 takes `step_size`. Without noise it would be `pgd`.
    """

    paper: ClassVar[str] = "de Jorge et al. 2022, arXiv 2202.01181, Alg. 1; github.com/pdejorge/N-FGSM"

    alpha: Annotated[Number, Field(ge=0, description="length of the step in units of eps; 0: step_size")] = 1.0
    noise: Annotated[Number, Field(gt=0, description="radius of the noise in units of eps (k)")] = 2.0

    @hookimpl
    def craft(self, run: Run, batch: Batch, objective: Objective) -> Tensor:
        attack = self.attack()
        wide = replace(attack.threat, eps=self.noise * attack.threat.eps).ball(batch.x)
        x_noisy = wide.start("uniform", batch.row, run.seed("attack"))
        model = self.attacked(run)
        with frozen(model, train=self.mode == "train"):
            x_noisy, _, gradient = gradient_at(model, objective, x_noisy)
        return (x_noisy + attack.step_size * attack.threat.ball(batch.x).ascent(gradient, x_noisy)).clamp_(0, 1)
