"""Local Lipschitz constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hookflat import Quantity, Subject, hookimpl, local_lipschitz


@dataclass(eq=False)
class Lipschitz:
    """Local Lipschitz constant: mean over examples of max d(f(x), f(x')) / ||x - x'|| in the ball around x.

    ||.|| is the norm of the threat, L-infinity in the papers. d is the L1 distance of logits, or the KL divergence of
    probabilities; PGD maximises from a uniform start: a lower bound. The official code's constants are far lower: it
    steps along the gradient of the negated ratio.
    """

    paper: ClassVar[str] = "Yang et al. 2020, arXiv 2003.02460; Kim et al. 2023, Fantastic Robustness Measures"

    top: Annotated[Literal["L1", "KL"], Field(description="d, of logits or of probabilities")] = "L1"
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 10

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        attack, work = subject.attack(self.steps).but(start="uniform"), subject.work(f"lipschitz {self.top}")
        options: dict[str, Any] = {"top": self.top, "attack": attack, "seed": subject.seed, "work": work}
        constants = local_lipschitz(subject.model, subject.examples, **options)
        return {f"lipschitz_{self.top.lower()}": constants.mean().item()}

    def numbers(self) -> dict[str, Quantity]:
        """What it is."""
        of = {"L1": "of logits", "KL": "in KL of probabilities"}
        return {
            f"lipschitz_{self.top.lower()}": Quantity(f"local Lipschitz constant {of[self.top]}", lower_is_better=True)
        }

    def passes(self) -> int:
        return self.steps + 3
