"""Weight clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from hookflat import Number, Run, hookimpl


@dataclass(eq=False)
class WeightClipping:
    """Weight clipping: every trainable value stays in [-w_max, w_max], clipped right after each optimizer step.

    Meant for networks whose norms have scale 1 + weight (`norm = "rebn"`), where it bounds scales around 1.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, arXiv 2006.13977; protocol of Stutz et al. 2021, section 4"
    kind: ClassVar[str] = "regularizer"
    off: ClassVar[dict[str, Any]] = {"w_max": 1e6}

    w_max: Annotated[Number, Field(gt=0, description="largest absolute value of a parameter")] = 0.005

    @hookimpl(tryfirst=True)  # averages see clipped weights
    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for p in run.network.parameters():
            if p.requires_grad:
                p.clamp_(-self.w_max, self.w_max)
