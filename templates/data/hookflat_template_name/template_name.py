"""The data set `template_name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from hookflat import Data, Images, hookimpl
from pydantic import Field


@dataclass(eq=False)
class TemplateName:
    """Noisy stripes, gray: class 0 lies, class 1 stands. Put your own images in the place of `stripes`."""

    train: Annotated[int, Field(ge=1, description="training images")] = 400
    test: Annotated[int, Field(ge=1, description="test images")] = 700
    size: Annotated[int, Field(ge=4, description="pixels a side")] = 8

    @hookimpl
    def build_data(self) -> Data:
        """Training and test images, and the number of classes; the same at every call and on every process."""
        return Data(stripes(self.train, self.size, seed=0), stripes(self.test, self.size, seed=1), num_classes=2)


def stripes(count: int, size: int, seed: int) -> Images:
    """Images (N, 1, size, size) uint8 with labels (N,) int64, every class equally often."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    lying = 160.0 * (torch.arange(size) // 2 % 2)[:, None].expand(size, size)
    noise = torch.randint(0, 96, (count, size, size), generator=generator)
    x = torch.where(y[:, None, None] == 0, lying, lying.T) + noise
    return Images(x.to(torch.uint8)[:, None], y)
