"""The core's own answers, registered behind every plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from hookflat.functional.attacks import Objective
from hookflat.functional.losses import cross_entropy
from hookflat.hookspecs import hookimpl

if TYPE_CHECKING:
    from hookflat.functional.data import Batch
    from hookflat.training.run import Run


@dataclass(eq=False)
class Core:
    """Cross-entropy, one backward pass, the network in training."""

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return lambda model, x_adv: cross_entropy(model(x_adv), batch.y)

    @hookimpl
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = run.loss(batch, x_adv)
        run.backward(loss)
        return loss.detach()

    @hookimpl
    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target)

    @hookimpl
    def eval_model(self, run: Run) -> nn.Module:
        return run.network
