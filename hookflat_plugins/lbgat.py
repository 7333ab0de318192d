"""Adversarial training guided by the boundary of a network that learns beside it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Companion, Number, Objective, Run, divergence_from_clean, hookimpl, kl_divergence


@dataclass(eq=False)
class LearnableBoundaryGuided:
    """LBGAT: MSE(f(x_adv), g(x)) + CE(g(x), y) + beta KL(p(x) || p(x_adv)), f and g trained at once.

    g, the guide, learns clean images, and to agree with f; f never sees a label. The squared error's mean is over
    examples and logits. g is a network of the recipe's own kind, with an optimizer and a schedule of its own (the
    authors train a ResNet beside a wide one by one optimizer for both, which is the same). The attack maximises
    TRADES's KL.
    """

    paper: ClassVar[str] = "Cui et al. 2021, arXiv 2011.11164; github.com/dvlab-research/LBGAT"

    beta: Annotated[Number, Field(ge=0, description="weight of the KL term (0: LBGAT0)")] = 6.0

    def __post_init__(self) -> None:
        self._guide: Companion | None = None
        self._guided: list[Tensor] = []  # of each part of the batch
        self._first_row: Tensor | None = None
        self._said: list[Tensor] = []

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Any, Any]:
        optimizer = yield
        self._guide = Companion(run, "lbgat")
        return optimizer

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return divergence_from_clean(batch.x)

    @hookimpl(wrapper=True)
    def craft(self, batch: Batch) -> Generator[None, Tensor, Tensor]:
        x_adv = yield
        assert self._guide is not None
        if not self._guided:
            self._first_row = batch.row[0]
        with torch.enable_grad():
            self._guided.append(self._guide.network(batch.x))
        return x_adv

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        assert self._first_row is not None
        assert self._guide is not None
        if self._guided:
            guided = torch.cat(self._guided).detach()[batch.row - self._first_row]
        else:  # after the step, where it is looked up which layer was not finite
            guided = self._guide.network(batch.x).detach()
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        self._said.append(logits_adv.detach())
        natural = run.criterion(guided, batch.target).mean()
        return F.mse_loss(logits_adv, guided) + natural + self.beta * kl_divergence(logits, logits_adv).mean()

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, batch: Batch) -> Generator[None, Tensor, Tensor]:
        """After the network's gradients are known, the guide's step, by what the network said last."""
        self._said.clear()
        loss = yield
        assert self._guide is not None
        guided, said = torch.cat(self._guided), torch.cat(self._said)[-len(batch.row) :]
        self._guided.clear()
        said = torch.where(said.isfinite(), said, guided.detach())  # of a pass that float16 cannot hold, nothing
        self._guide.step(F.mse_loss(guided, said) + run.criterion(guided, batch.target).mean())
        return loss

    def state_dict(self) -> dict[str, Any]:
        assert self._guide is not None
        return self._guide.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._guide is not None
        self._guide.load_state_dict(state)
