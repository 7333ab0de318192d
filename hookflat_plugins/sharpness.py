"""SAM-sharpness and adaptive sharpness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Losses, Number, Quantity, Subject, hookimpl, sharpness


@dataclass(eq=False)
class SharpnessMeasure:
    """Sharpness after one step of ascent: SAM's, of L2 radius `rho`, and the adaptive one, of radius `adaptive_rho`
    relative to each weight and bias, which does not see rescaling; in the clean and in the robust loss.
    """

    paper: ClassVar[str] = "Foret et al. 2021, arXiv 2010.01412; Andriushchenko et al. 2023, arXiv 2302.07011"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    rho: Annotated[Number, Field(ge=0, description="L2 radius over all weights")] = 0.05
    adaptive_rho: Annotated[Number, Field(ge=0, description="L2 radius in units of |w|")] = 0.5
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {}
        for loss in self.losses:
            for name, rho in (("sam", self.rho), ("adaptive", self.adaptive_rho)):
                measured = sharpness(
                    subject.model,
                    subject.examples,
                    rho=rho,
                    adaptive=name == "adaptive",
                    robust=loss == "robust",
                    attack=subject.attack(self.steps),
                    seed=subject.seed,
                    work=subject.work(f"sharpness {loss} {name}"),
                )
                values[f"{name}_sharpness_{loss}"] = measured.sharpness
        return values

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        kinds = {"sam": "SAM-sharpness", "adaptive": "adaptive sharpness"}
        return {
            f"{name}_sharpness_{loss}": Quantity(f"{label}, {loss} loss", "loss", lower_is_better=True)
            for loss in self.losses
            for name, label in kinds.items()
        }

    def passes(self) -> int:
        return 4 * (len(self.losses) + (self.steps + 1) * ("robust" in self.losses))
