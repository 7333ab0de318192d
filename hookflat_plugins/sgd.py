"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from hookflat import Decay, Number, hookimpl


@dataclass(eq=False)
class Sgd:
    """SGD with Nesterov momentum and weight decay on every parameter, as in the paper (protocol, section 3)."""

    lr: Annotated[Number, Field(gt=0, description="learning rate before any schedule")] = 0.05
    momentum: Annotated[Decay, Field(description="of past gradients")] = 0.9
    nesterov: Annotated[bool, Field(description="look ahead")] = True
    weight_decay: Annotated[Number, Field(ge=0, description="L2 penalty, on norms and biases too")] = 5e-4

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0: set momentum, or nesterov = false")

    @hookimpl
    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )
