"""Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from hookflat import Decay, Number, hookimpl


@dataclass(eq=False)
class Adam:
    """Adam with L2 penalty in the gradient (not decoupled), as the paper's Adam runs have it."""

    paper: ClassVar[str] = "Kingma and Ba 2015, arXiv 1412.6980"

    lr: Annotated[Number, Field(gt=0, description="learning rate before any schedule")] = 1e-3
    beta1: Annotated[Decay, Field(description="decay of the gradient's mean")] = 0.9
    beta2: Annotated[Decay, Field(description="decay of the gradient's square")] = 0.999
    weight_decay: Annotated[Number, Field(ge=0, description="L2 penalty, on norms and biases too")] = 5e-4

    @hookimpl
    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, (self.beta1, self.beta2), weight_decay=self.weight_decay)
