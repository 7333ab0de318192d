"""The network `template_name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hookflat import Normalized, Run, hookimpl
from pydantic import Field
from torch import nn


@dataclass(eq=False)
class TemplateName:
    """Two convolutions with batch norm, pooling to 2x2, and a linear layer."""

    width: Annotated[int, Field(ge=1, description="channels of the first convolution, half of the second's")] = 16

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        """Images (n, C, H, W) in [0, 1] to logits (n, K). The normalisation of the input is its first layer."""
        width = self.width
        net = nn.Sequential(
            nn.Conv2d(run.data.channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, run.data.num_classes),
        )
        return Normalized(net, *run.data.train.statistics())
