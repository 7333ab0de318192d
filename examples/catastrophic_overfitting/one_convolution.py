"""The smallest network on which FGSM training collapses: one convolution and a linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from hookflat import Run, hookimpl


@dataclass(eq=False)
class OneConvolution:
    """A 3x3 convolution, ReLU, and a linear layer on all of its pixels; He et al.'s normal weights, zero biases.

    Images are not normalised, as in the official code (model `cnn`, `--n_layers=1`).
    """

    paper: ClassVar[str] = "Andriushchenko and Flammarion 2020, arXiv 2007.02617, section 4.2"

    filters: Annotated[int, Field(ge=1, description="of the convolution")] = 16

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        """Logits of images in [0, 1]."""
        channels, height, width = run.data.train.shape
        convolution = nn.Conv2d(channels, self.filters, 3, padding=1)
        linear = nn.Linear(self.filters * height * width, run.data.num_classes)
        for layer, fan in ((convolution, 9 * self.filters), (linear, linear.in_features)):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan))
            nn.init.zeros_(layer.get_parameter("bias"))
        return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear)
