"""AutoAugment with Cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Run, Share, derive_seed, hookimpl


@dataclass(eq=False)
class AutoAugment:
    """AutoAugment, the CIFAR-10 policy (25 sub-policies), then Cutout: one square filled with the mean colour.

    The square's centre is uniform over all pixels, so that it may leave the image. List it after `augment`, with
    `fill = "mean"` there: crop, flip, policy, Cutout is the published order (protocol, section 3).
    """

    paper: ClassVar[str] = "Cubuk et al. 2018, arXiv 1805.09501; DeVries and Taylor 2017, arXiv 1708.04552"

    cutout: Annotated[Share, Field(description="side of the square, as a share of the image's (16 of 32 pixels)")] = 0.5

    def __post_init__(self) -> None:
        self._mean: Tensor | None = None

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        from torchvision.transforms import v2
        from torchvision.transforms.autoaugment import AutoAugmentPolicy

        if self._mean is None:
            self._mean = run.data.train.statistics()[0]
        policy = v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=(255 * self._mean).round().int().tolist())
        levels = (255 * batch.x).round().to(torch.uint8).cpu()
        # torchvision draws from the global generator, once a call: image by image
        with torch.random.fork_rng(devices=[]):
            images = []
            for image, row in zip(levels, batch.row.tolist(), strict=True):
                torch.manual_seed(derive_seed(run.seed("autoaugment"), row))
                images.append(policy(image))
        x = torch.stack(images).to(batch.x.device).float() / 255
        batch.x = self._cut(x, run.uniform("cutout", batch, (2,)))

    def _cut(self, x: Tensor, draws: Tensor) -> Tensor:
        """x with the square [centre - side/2, centre + side/2) of every image set to the mean colour."""
        assert self._mean is not None
        height, width = x.shape[2:]
        inside = []
        for size, draw in ((height, draws[:, 0]), (width, draws[:, 1])):
            side = round(self.cutout * size)
            first = (draw * size).long() - side // 2
            pixel = torch.arange(size, device=x.device)
            inside.append((pixel >= first[:, None]) & (pixel < first[:, None] + side))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(square, self._mean.to(x).view(1, -1, 1, 1), x)
