"""The loss `template_name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from hookflat import Batch, Number, Run, hookimpl
from pydantic import Field
from torch import Tensor


@dataclass(eq=False)
class TemplateName:
    """Cross-entropy on adversarial examples, plus weight times the mean squared logit (logit squeezing)."""

    paper: ClassVar[str] = "Kannan et al. 2018, arXiv 1803.06373"

    weight: Annotated[Number, Field(ge=0, description="of the mean squared logit")] = 0.1

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        """A scalar, the mean over the batch. `run.criterion` is the cross-entropy, or what plugins make of it."""
        logits = run.model(x_adv)
        return run.criterion(logits, batch.target).mean() + self.weight * logits.square().mean()
