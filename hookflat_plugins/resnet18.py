"""The paper's ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from hookflat import Activation, Normalization, Normalized, Run, Width, hookimpl, small_image_resnet


@dataclass(eq=False)
class ResNet18:
    """ResNet-18 for 32x32 images as in the paper: 11,174,922 parameters on colour images and 10 classes.

    3x3 stem, batch norm with scale 1 + weight, biases in stem and shortcuts, He initialisation (protocol, section 3).
    Input normalisation by the training set's statistics is its first layer.
    """

    paper: ClassVar[str] = "He et al. 2016, arXiv 1512.03385"

    width: Width = 64
    blocks: Annotated[int, Field(ge=1, description="basic blocks a stage")] = 2
    norm: Annotated[Normalization, Field(description="of activations; rebn: batch norm with scale 1 + weight")] = "rebn"
    act: Annotated[Activation, Field(description="activation")] = "relu"

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        net = small_image_resnet(self.width, self.blocks, run.data.channels, run.data.num_classes, self.norm, self.act)
        return Normalized(net, *run.data.train.statistics())
