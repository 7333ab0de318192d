"""Relative flatness of the penultimate layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Losses, Quantity, Subject, hookimpl, relative_flatness


@dataclass(eq=False)
class RelativeFlatness:
    """Relative flatness: the trace of the Hessian by the last layer's weights, weighted by their inner products, in
    closed form; in the clean and in the robust loss. Lower is flatter.
    """

    paper: ClassVar[str] = "Petzka et al. 2021, arXiv 2001.00939; Walter et al. 2025, arXiv 2510.14231"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        return {
            f"relative_flatness_{loss}": relative_flatness(
                subject.model,
                subject.examples,
                robust=loss == "robust",
                attack=subject.attack(self.steps),
                seed=subject.seed,
                work=subject.work(f"relative_flatness {loss}"),
            )
            for loss in self.losses
        }

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return {
            f"relative_flatness_{loss}": Quantity(f"relative flatness, {loss} loss", lower_is_better=True)
            for loss in self.losses
        }

    def passes(self) -> int:
        return len(self.losses) + (self.steps + 1) * ("robust" in self.losses)
