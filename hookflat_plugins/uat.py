"""Unsupervised adversarial training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Objective, Run, divergence_from_clean, hookimpl, kl_divergence


@dataclass(eq=False)
class UnsupervisedAdversarialTraining:
    """UAT: adversarial training on images without labels, beside those with labels; needs the plugin `unlabeled`.

    "ft" (fixed targets): CE(f(x_adv), y) with labels and fixed pseudo-labels. "ot" (online targets): CE(f(x), y) on the
    labelled images, plus weight KL(p(x) || p(x_adv)) on all, without gradient through p(x), and without pseudo-labels.
    "++": "ft" plus weight times the KL of "ot". The attack maximises the cross-entropy, for "ot" the KL.

    The authors released no training code. Not confirmed: the weight, which of the terms of "++" it belongs to, and the
    clean cross-entropy of "ot".
    """

    paper: ClassVar[str] = "Alayrac et al. 2019, arXiv 1905.13725, section 3"

    targets: Annotated[Literal["ft", "ot", "++"], Field(description="fixed, online, or both")] = "++"
    weight: Annotated[Number, Field(ge=0, description="of the KL term (lambda)")] = 5.0

    def __post_init__(self) -> None:
        self._labeled: Tensor | None = None

    @hookimpl(wrapper=True, tryfirst=True)  # around those that perturb weights: they ask for the loss, too
    def gradients(self, run: Run, batch: Batch) -> Generator[None, Tensor, Tensor]:
        self._count(run, batch)
        return (yield)

    def _count(self, run: Run, batch: Batch) -> None:
        """The labelled images of a whole batch: processes, and parts of it, may hold more or fewer."""
        if self.targets == "ot":
            self._labeled = run.accelerator.reduce(batch.labeled.sum().float(), "mean").clamp_min(1)

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective | None:
        if self.targets != "ot":
            return None
        return divergence_from_clean(batch.x)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        if self.targets == "ft":
            return run.criterion(run.model(x_adv), batch.target).mean()
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        smoothness = self.weight * kl_divergence(logits.detach(), logits_adv).mean()
        if self.targets == "++":
            return run.criterion(logits_adv, batch.target).mean() + smoothness
        if self._labeled is None:
            self._count(run, batch)
        assert self._labeled is not None
        counted = self._labeled * batch.weight(run.processes)
        return (run.criterion(logits, batch.target) * batch.labeled).sum() / counted + smoothness
