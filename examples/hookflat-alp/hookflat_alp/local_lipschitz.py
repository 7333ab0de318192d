"""The empirical local Lipschitz constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from hookflat import Objective, Quantity, Subject, frozen, hookimpl, pgd
from pydantic import Field
from torch import Tensor, nn


def stretch(x: Tensor, logits: Tensor) -> Objective:
    """||f(x) - f(x')||_1 / ||x - x'||_inf of each example, (n,), as an objective for PGD; `logits` = f(x).

    No gradient flows through the denominator: it would keep signed steps away from the corners of the ball.
    """

    def objective(model: nn.Module, x_adv: Tensor) -> Tensor:
        distance = (x_adv.detach() - x).flatten(1).abs().amax(dim=1)
        return (model(x_adv) - logits).abs().sum(dim=1) / distance.clamp_min(1e-12)

    return objective


@dataclass(eq=False)
class LocalLipschitz:
    """Local Lipschitz constant: mean over examples of max ||f(x) - f(x')||_1 / ||x - x'||_inf in the ball around x.

    f are the logits in evaluation mode, the ball has the radius `[eval] eps`, and PGD maximises from a uniform start: a
    lower bound (the official code steps along the gradient of the negated ratio, to far lower ones).
    """

    paper: ClassVar[str] = "Yang et al. 2020, arXiv 2003.02460; github.com/yangarbiter/robust-local-lipschitz"

    steps: Annotated[int, Field(ge=1, description="of PGD")] = 10
    restarts: Annotated[int, Field(ge=1, description="random starts")] = 1

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        """One number for a split: every process adds its examples' values, `gather` makes them everyone's."""
        model, suprema = subject.model, []
        with frozen(model), torch.no_grad():
            for x, _, keys in subject.examples:
                objective = stretch(x, model(x))
                x_adv = pgd(
                    model,
                    x,
                    attack=subject.attack(self.steps, self.restarts),
                    start="uniform",
                    objective=objective,
                    seed=subject.seed,
                    keys=keys,
                )
                suprema.append(objective(model, x_adv))
        every = subject.examples.gather(torch.cat(suprema))
        return {"local_lipschitz": every.double().mean().item()}

    def numbers(self) -> dict[str, Quantity]:
        """What it is, for every table and report."""
        return {"local_lipschitz": Quantity("local Lipschitz constant", lower_is_better=True)}
