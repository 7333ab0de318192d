"""Adversarial training that weights examples by their margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Objective, Run, Share, divergence_from_clean, hookimpl, kl_divergence


@dataclass(eq=False)
class Mail:
    """MAIL: adversarial terms weighted by w = 3 sigmoid(slope (m + bias)), m = max_{k != y} p_k(x_adv) - p_y(x_adv).

    "at": w CE(f(x_adv), y). "trades": CE(f(x), y) + beta w KL(p(x) || p(x_adv)), whose attack maximises the KL. No
    gradient flows through w, which is 1 before `start`. The factor 3 is the official code's; it divides by no mean over
    the batch, so that steps are small where all margins are wide. Bias, slope and beta are those of its command for
    "trades"; its command for "at" has bias -0.5 and slope 10. Its third form, on MART, is not here.
    """

    paper: ClassVar[str] = "Liu et al. 2021, arXiv 2106.07904, MAIL; github.com/QizhouWang/MAIL"

    form: Annotated[Literal["at", "trades"], Field(description="the loss that is weighted")] = "trades"
    bias: Annotated[Number, Field(description="added to the margin")] = 0.0
    slope: Annotated[Number, Field(ge=0, description="of the sigmoid")] = 2.0
    beta: Annotated[Number, Field(ge=0, description='weight of the KL term of "trades"')] = 5.0
    start: Annotated[Share, Field(description="share of the training before the first weights (75 of 120)")] = 0.625

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective | None:
        if self.form == "at":
            return None
        return divergence_from_clean(batch.x)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        if self.form == "at":
            logits_adv = run.model(x_adv)
            return (self._weights(run, logits_adv, batch.y) * run.criterion(logits_adv, batch.target)).mean()
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        weighted = self._weights(run, logits_adv, batch.y) * kl_divergence(logits, logits_adv)
        return (run.criterion(logits, batch.target) + self.beta * weighted).mean()

    def _weights(self, run: Run, logits_adv: Tensor, y: Tensor) -> Tensor:
        p = logits_adv.detach().softmax(dim=1)
        if run.step < self.start * run.total_steps:
            return p.new_ones(len(p))
        label = F.one_hot(y, p.shape[1]).bool()
        margin = p.masked_fill(label, 0).amax(dim=1) - p.masked_fill(~label, 0).amax(dim=1)
        return 3 * (self.slope * (margin + self.bias)).sigmoid()
