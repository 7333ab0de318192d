"""Label noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from hookflat import Batch, Run, Share, hookimpl


@dataclass(eq=False)
class LabelNoise:
    """Label noise: with probability `rate` the target is drawn uniformly from all classes, the true one included.

    Drawn anew in every step; wrong with probability rate (K - 1) / K. Attacks keep the true label (protocol, section
    4).
    """

    paper: ClassVar[str] = "Szegedy et al. 2016, arXiv 1512.00567; protocol of Stutz et al. 2021, section 4"
    off: ClassVar[dict[str, Any]] = {"rate": 0}

    rate: Annotated[Share, Field(description="probability that a label is redrawn (tau)")] = 0.4

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        draws = run.uniform("label_noise", batch, (2,))
        drawn, redrawn = (draws[:, 1] * run.data.num_classes).long(), draws[:, 0] < self.rate
        if batch.target.is_floating_point():
            drawn, redrawn = F.one_hot(drawn, run.data.num_classes).to(batch.target), redrawn[:, None]
        batch.target = torch.where(redrawn, drawn, batch.target)
