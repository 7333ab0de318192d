"""The weight perturbation `template_name`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from hookflat import Number, Run, hookimpl, layers, moved, sphere
from pydantic import Field
from torch import Tensor


@dataclass(eq=False)
class TemplateName:
    """Take the gradient at w + nu, nu drawn anew in each step from the sphere of radius xi ||w_l|| in each layer l."""

    off: ClassVar[dict[str, Any]] = {"xi": 0}

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer")] = 0.01

    @hookimpl(wrapper=True)
    def gradients(self, run: Run) -> Generator[None, Tensor, Tensor]:
        """Loss and gradients at w + nu; `moved` puts the weights back, bit for bit, on any exit.

        A perturbation that follows gradients gets them from `run.gradients_at(batch, x_adv, weights)`.
        """
        weights = list(layers(run.network, biases=False).values())
        with moved(weights, sphere(weights, self.xi, run.rng("template_name"))):
            return (yield)
