"""The core's own answers, registered behind every plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from hookflat.functional.attacks import Objective
from hookflat.functional.data import Batch
from hookflat.functional.losses import cross_entropy
from hookflat.hookspecs import hookimpl


class Step(Protocol):
    """What the core needs of a run."""

    network: nn.Module

    def loss_and_gradients(self, batch: Batch, x_adv: Tensor) -> Tensor: ...


@dataclass(eq=False)
class Core:
    """Cross-entropy, one backward pass, the network in training."""

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return lambda model, x_adv: cross_entropy(model(x_adv), batch.y)

    @hookimpl
    def gradients(self, run: Step, batch: Batch, x_adv: Tensor) -> Tensor:
        return run.loss_and_gradients(batch, x_adv)

    @hookimpl
    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target)

    @hookimpl
    def eval_model(self, run: Step) -> nn.Module:
        return run.network
