"""Norms of input gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import Losses, Quantity, Subject, hookimpl, input_gradients


@dataclass(eq=False)
class InputGradientsMeasure:
    """L1 and L2 norms of the gradient of an example's cross-entropy by its pixels, means over examples.

    At the images and at PGD's adversarial examples. Pixels are in [0, 1].
    """

    paper: ClassVar[str] = "Kim et al. 2023, Fantastic Robustness Measures; Ross and Doshi-Velez 2018, arXiv 1711.09404"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {}
        for loss in self.losses:
            attack, work = subject.attack(self.steps), subject.work(f"input_gradients {loss}")
            options: dict[str, Any] = {"robust": loss == "robust", "attack": attack, "seed": subject.seed, "work": work}
            gradients = input_gradients(subject.model, subject.examples, **options)
            values |= {f"input_gradient_{n}_{loss}": norms.mean().item() for n, norms in vars(gradients).items()}
        return values

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        where = {"clean": "clean", "robust": "adversarial examples"}
        return {
            f"input_gradient_{norm}_{loss}": Quantity(
                f"{norm.upper()} norm of the input gradient, {where[loss]}", lower_is_better=True
            )
            for loss in self.losses
            for norm in ("l1", "l2")
        }

    def passes(self) -> int:
        return len(self.losses) + (self.steps + 1) * ("robust" in self.losses)
