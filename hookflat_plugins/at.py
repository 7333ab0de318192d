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

    With `fraction` below 1, the first examples of the global batch stay clean and the rest is adversarial, in one joint
    forward pass (50/50 AT: 0.5); each part counts by its share.
    """

    paper: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083"

    fraction: Annotated[Share, Field(gt=0, description="share of adversarial examples in a batch")] = 1.0

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        clean = batch.row < batch.global_size - round(self.fraction * batch.global_size)
        x = torch.where(clean[:, None, None, None], batch.x, x_adv)
        return run.criterion(run.model(x), batch.target).mean()
