"""Boundary thickness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Number, Quantity, Subject, boundary_thickness, hookimpl


@dataclass(eq=False)
class BoundaryThickness:
    """Boundary thickness: the length on which alpha < p_i - p_j < beta between x and a targeted adversarial example.

    i is the class predicted at x, j a random one other than the label; PGD in an L2 ball of `radius` goes towards j.
    Mean over examples. Defaults are the authors', for 32 x 32 pixels; lengths are of pixels in [0, 1], about a fifth of
    those that they give, of normalised images.
    """

    paper: ClassVar[str] = "Yang et al. 2020, arXiv 2007.05086; github.com/nsfzyzz/boundary_thickness"

    radius: Annotated[Number, Field(gt=0, description="of the L2 ball, pixels in [0, 1]")] = 1.0
    step_size: Annotated[Number, Field(gt=0, description="in L2")] = 0.2
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    alpha: Annotated[Number, Field(ge=-1, le=1, description="lower end of the boundary")] = 0.0
    beta: Annotated[Number, Field(ge=-1, le=1, description="upper end of the boundary")] = 0.75
    points: Annotated[int, Field(ge=2, description="on the segment")] = 128

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        thickness = boundary_thickness(
            subject.model,
            subject.examples,
            radius=self.radius,
            step_size=self.step_size,
            steps=self.steps,
            alpha=self.alpha,
            beta=self.beta,
            points=self.points,
            seed=subject.seed,
            work=subject.work("boundary_thickness"),
        )
        return {"boundary_thickness": thickness.mean().item()}

    def numbers(self) -> dict[str, Quantity]:
        """What it is."""
        return {"boundary_thickness": Quantity("boundary thickness", lower_is_better=False)}

    def passes(self) -> int:
        return 1 + self.steps + self.points
