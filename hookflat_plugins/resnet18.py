"""The paper's ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from hookflat_plugins.resnet_small import ResNetSmall, Width


@dataclass(eq=False)
class ResNet18(ResNetSmall):
    """ResNet-18 for 32x32 images as in the paper: 11,174,922 parameters on colour images and 10 classes.

    3x3 stem, batch norm with scale 1 + weight, biases in stem and shortcuts, He initialisation (protocol, section 3).
    """

    width: Width = 64
    blocks: Annotated[int, Field(ge=1, description="basic blocks a stage")] = 2
