"""The measure `template_name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from hookflat import Quantity, Subject, frozen, hookimpl, pgd
from pydantic import Field
from torch import Tensor


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of the label minus the largest other one, (n,): negative where the label is not predicted."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.amax(dim=1)


@dataclass(eq=False)
class TemplateName:
    """Mean over examples of the smallest margin of logits that PGD finds in the ball `[eval] eps`."""

    paper: ClassVar[str] = "Carlini and Wagner 2017, arXiv 1608.04644, objective f6"

    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    restarts: Annotated[int, Field(ge=1, description="random starts")] = 1

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        """One number for a split: every process adds its examples' values, `gather` makes them everyone's."""
        model, margins = subject.model, []
        attack = subject.attack(self.steps, self.restarts)
        with frozen(model), torch.no_grad():
            for x, y, keys in subject.examples:
                x_adv = pgd(
                    model,
                    x,
                    attack=attack,
                    objective=lambda net, images, y=y: -margin(net(images), y),
                    seed=subject.seed,
                    keys=keys,
                )
                margins.append(margin(model(x_adv), y))
        every = subject.examples.gather(torch.cat(margins))
        return {"template_name": every.double().mean().item()}

    def numbers(self) -> dict[str, Quantity]:
        """What it is, for every table and report."""
        return {"template_name": Quantity("adversarial margin", lower_is_better=False)}

    def passes(self) -> int:
        """How often an example goes through the network, for the time left."""
        return (self.steps + 1) * self.restarts + 1
