"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Share, hookimpl


@dataclass(eq=False)
class LabelSmoothing:
    """Label smoothing: cross-entropy with (1 - tau) one-hot + tau / K. Attacks keep the true label."""

    paper: ClassVar[str] = "Szegedy et al. 2016, arXiv 1512.00567; protocol of Stutz et al. 2021, section 4"
    off: ClassVar[dict[str, Any]] = {"tau": 0}

    tau: Annotated[Share, Field(description="probability spread over all classes")] = 0.3

    @hookimpl
    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=self.tau)
