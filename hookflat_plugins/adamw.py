"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from hookflat import Decay, Number, hookimpl


@dataclass(eq=False)
class AdamW:
    """Adam with decoupled weight decay, on matrices and kernels alone: norms and biases do not decay."""

    paper: ClassVar[str] = "Loshchilov and Hutter 2019, arXiv 1711.05101; defaults of Singh et al. 2023"

    lr: Annotated[Number, Field(gt=0, description="learning rate before any schedule")] = 1e-3
    beta1: Annotated[Decay, Field(description="decay of the gradient's mean")] = 0.9
    beta2: Annotated[Decay, Field(description="decay of the gradient's square")] = 0.95
    weight_decay: Annotated[Number, Field(ge=0, description="of tensors with two or more dimensions")] = 0.05

    @hookimpl
    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], self.lr, (self.beta1, self.beta2))
