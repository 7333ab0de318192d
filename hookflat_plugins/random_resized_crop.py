"""Random crops of random size, as on ImageNet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, Share, hookimpl


@dataclass(eq=False)
class RandomResizedCrop:
    """A box of every image, of random area and shape and at a random place, resized to the image's size (bilinear).

    The area is uniform between `area` and 1 times the image's, the logarithm of width / height uniform between
    -log(`ratio`) and log(`ratio`), and a side at most the image's. It cuts from the images that `[data]` gives, of
    which the margins may be gone already.
    """

    paper: ClassVar[str] = "Szegedy et al. 2015, arXiv 1409.4842"

    area: Annotated[Share, Field(gt=0, description="the smallest, as a share of the image's")] = 0.08
    ratio: Annotated[Number, Field(ge=1, description="of the longer to the shorter side, at most")] = 4 / 3

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        draws = run.uniform("random_resized_crop", batch, (4,))
        batch.x = resized_crops(batch.x, self.boxes(draws, *batch.x.shape[2:]))

    def boxes(self, draws: Tensor, height: int, width: int) -> Tensor:
        """(n, 4): left, top, width and height, as shares of the image's sides, of `draws` (n, 4) in [0, 1)."""
        pixels = (self.area + (1 - self.area) * draws[:, 0]) * height * width
        shape = torch.exp((2 * draws[:, 1] - 1) * math.log(self.ratio))
        wide = ((pixels * shape).sqrt() / width).clamp_max(1)
        high = ((pixels / shape).sqrt() / height).clamp_max(1)
        return torch.stack([draws[:, 2] * (1 - wide), draws[:, 3] * (1 - high), wide, high], dim=1)


def resized_crops(x: Tensor, boxes: Tensor) -> Tensor:
    """Every image's box, resized to the image's size: (n, C, H, W), of (n, C, H, W) and boxes (n, 4)."""
    left, top, wide, high = boxes.T
    zero = torch.zeros_like(left)
    to_box = torch.stack([wide, zero, 2 * left + wide - 1, zero, high, 2 * top + high - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(to_box, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)
