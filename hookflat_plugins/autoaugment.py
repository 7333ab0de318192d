"""AutoAugment with Cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Run, Share, hookimpl


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
        self._colour: Tensor | None = None  # the same on the device

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if self._mean is None:
            self._mean = run.data.train.statistics()[0]
        levels = (255 * batch.x).round().to(torch.uint8)
        x = policy_on(levels, run.uniform("autoaugment", batch, (5,)), self._mean).float() / 255
        batch.x = self._cut(x, run.uniform("cutout", batch, (2,)))

    def _cut(self, x: Tensor, draws: Tensor) -> Tensor:
        """x with the square [centre - side/2, centre + side/2) of every image set to the mean colour."""
        assert self._mean is not None
        if self._colour is None:
            self._colour = self._mean.to(x).view(1, -1, 1, 1)
        height, width = x.shape[2:]
        inside = []
        for size, draw in ((height, draws[:, 0]), (width, draws[:, 1])):
            side = round(self.cutout * size)
            first = (draw * size).long() - side // 2
            pixel = torch.arange(size, device=x.device)
            inside.append((pixel >= first[:, None]) & (pixel < first[:, None] + side))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(square, self._colour, x)


def policy_on(x: Tensor, draws: Tensor, mean: Tensor) -> Tensor:
    """torchvision's CIFAR-10 policy on every image of a batch (n, C, H, W) uint8, on its device.

    `draws` (n, 5) in [0, 1): the sub-policy, and for each of its two operations whether it is applied and in which
    direction. `mean` (C,) in [0, 1] fills what comes from outside. An operation runs once for all images that it is
    due on; on a GPU on all images, so that nobody has to wait and see which they are.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.autoaugment import AutoAugmentPolicy

    torchvisions = v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=(255 * mean).round().int().tolist())
    policies = torchvisions._policies
    chosen = (draws[:, 0] * len(policies)).long().clamp_max(len(policies) - 1)
    for number in range(2):
        applied, sign = draws[:, 1 + 2 * number], draws[:, 2 + 2 * number]
        due: dict[tuple[str, float], Tensor] = {}
        for i, policy in enumerate(policies):
            name, probability, bin_of_ten = policy[number]
            here = (chosen == i) & (applied <= probability)
            bins, signed = torchvisions._AUGMENTATION_SPACE[name]
            sizes = bins(10, x.shape[2], x.shape[3])
            size = 0.0 if sizes is None else float(sizes[bin_of_ten])
            for factor, side in ((1, sign > 0.5), (-1, sign <= 0.5)) if signed else ((1, sign >= 0),):
                key = (name, factor * size)
                due[key] = due.get(key, torch.zeros_like(here)) | (here & side)
        before = x
        for (name, size), images in due.items():
            if x.is_cuda:
                changed = _operation(torchvisions, before, name, size)
                x = torch.where(images.view(-1, 1, 1, 1), changed, x)
            elif len(index := images.nonzero().flatten()):
                x = x.index_copy(0, index, _operation(torchvisions, before[index], name, size))
    return x


def _operation(torchvisions: Any, x: Tensor, name: str, size: float) -> Tensor:
    return torchvisions._apply_image_or_video_transform(
        x, name, size, interpolation=torchvisions.interpolation, fill=torchvisions._fill
    )
