"""MART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, hookimpl, kl_divergence


@dataclass(eq=False)
class Mart:
    """MART: boosted cross-entropy on x_adv, plus beta times KL(p(x) || p(x_adv)) weighted by 1 - p_y(x).

    Boosted: CE(f(x_adv), y) - log(1.0001 - max_{k != y} p_k(x_adv)). Clean and adversarial examples are forwarded
    separately and the gradient flows through all of it, the weights 1 - p_y(x) too, as in the official code. The KL is
    exact (there with log(p(x_adv) + 1e-12)). The attack maximises the cross-entropy.
    """

    paper: ClassVar[str] = "Wang et al. 2020, openreview rklOg6EFwS; github.com/YisenWang/MART"

    beta: Annotated[Number, Field(ge=0, description="weight of the KL term (lambda in the paper)")] = 6.0

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        label = F.one_hot(batch.y, logits.shape[1]).bool()
        p_other = logits_adv.softmax(dim=1).masked_fill(label, 0).amax(dim=1)
        boosted = run.criterion(logits_adv, batch.target) - torch.log(1.0001 - p_other + 1e-12)
        doubt = 1.0000001 - logits.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        return (boosted + self.beta * doubt * kl_divergence(logits, logits_adv)).mean()
