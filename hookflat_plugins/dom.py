"""Adversarial training without what is over-memorised."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, Share, cross_entropy, hookimpl


@dataclass(eq=False)
class DistractionOverMemorization:
    """DOM by removal: CE(f(x_adv), y), from `start` on without examples whose clean CE(f(x), y) is below `threshold`.

    The mean is over the whole batch, removed examples count as zero. The clean loss is the network's in evaluation mode
    before any weight perturbation (the official code's is in training mode and moves the running statistics). The
    threshold is its command's for AT; for single-step AT it has 2.0. The other form, which augments those examples
    instead, is not here.
    """

    paper: ClassVar[str] = "Lin et al. 2024, arXiv 2310.08847, DOM_RE; github.com/tmllab/2024_ICLR_DOM"

    threshold: Annotated[Number, Field(ge=0, description="clean loss below which an example is removed")] = 1.5
    start: Annotated[Share, Field(description="share of the training before the first removal")] = 0.5

    def __post_init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None  # the first row, and which examples from there on

    @hookimpl(wrapper=True, tryfirst=True)
    def gradients(self, run: Run, batch: Batch) -> Generator[None, Tensor, Tensor]:
        self._kept = None
        if run.step >= self.start * run.total_steps:
            with torch.no_grad():
                self._kept = batch.row[0], cross_entropy(run.attack_model(batch.x), batch.y) >= self.threshold
        return (yield)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        wrong = run.criterion(run.model(x_adv), batch.target)
        if self._kept is None:
            return wrong.mean()
        first, kept = self._kept
        return (wrong * kept[batch.row - first]).mean()
