"""Adversarial logit pairing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from hookflat import Batch, Number, Run, Share, hookimpl
from pydantic import Field
from torch import Tensor


@dataclass(eq=False)
class Alp:
    """ALP: cross-entropy on clean and adversarial examples, plus weight times the mean squared difference of logits.

    The authors' mixed-minibatch PGD with pairing: the n clean examples and the n adversarial ones made from them go
    through the network in one pass, the cross-entropy is the mean over all 2n, and the pairing term is the mean of
    (f(x)_k - f(x_adv)_k)^2 over pairs and classes. The gradient flows through both logits. `clean` is the clean half's
    share of the cross-entropy: 0 pairs plain adversarial training. The attack and label smoothing are other plugins'
    (the authors' ImageNet runs: targeted PGD-10, smoothing 0.1).
    """

    paper: ClassVar[str] = "Kannan et al. 2018, arXiv 1803.06373; github.com/tensorflow/models"

    weight: Annotated[Number, Field(ge=0, description="of the pairing term (lambda)")] = 0.5
    clean: Annotated[Share, Field(description="share of clean examples in the cross-entropy")] = 0.5

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        """A scalar, the mean over the batch."""
        logits, logits_adv = run.model(torch.cat([batch.x, x_adv])).chunk(2)
        clean = run.criterion(logits, batch.target).mean()
        adversarial = run.criterion(logits_adv, batch.target).mean()
        pairing = F.mse_loss(logits_adv, logits)
        return self.clean * clean + (1 - self.clean) * adversarial + self.weight * pairing
