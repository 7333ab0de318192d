"""Adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Run, Share, hookimpl


@dataclass(eq=False)
class AdversarialTraining:
    """Adversarial training: cross-entropy on adversarial examples, CE(f(x + delta), y).

    With `fraction` below 1 the others stay clean, spread evenly over the global batch, in one joint forward pass (50/50
    AT: 0.5); clean and adversarial examples count by their shares.
    """

    paper: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083"

    fraction: Annotated[Share, Field(gt=0, description="share of adversarial examples in a batch")] = 1.0

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        adversarial = batch.interleaved(round(self.fraction * batch.global_size))
        x = torch.where(adversarial[:, None, None, None], x_adv, batch.x)
        return run.criterion(run.model(x), batch.target).mean()
