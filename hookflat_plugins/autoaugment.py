"""AutoAugment with Cutout, and RandAugment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
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


@dataclass(eq=False)
class RandAugment:
    """RandAugment: `operations` of torchvision's fourteen, one after the other, drawn anew for every image.

    Identity, shears, translations, rotation, brightness, colour, contrast, sharpness, posterize, solarize,
    autocontrast, equalize, all as strong as `magnitude` says and in a random direction where there are two. What comes
    from outside is of the mean colour. List it after crops and flips. timm's form, which Singh et al. train with,
    draws the strength as well and has inversions.
    """

    paper: ClassVar[str] = "Cubuk et al. 2019, arXiv 1909.13719"
    off: ClassVar[dict[str, Any]] = {"operations": 0}

    operations: Annotated[int, Field(ge=0, description="applied to every image (N)")] = 2
    magnitude: Annotated[Share, Field(description="of the strongest (M of 30: M / 30)")] = 0.3

    def __post_init__(self) -> None:
        self._mean: Tensor | None = None

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if self.operations == 0:
            return
        if self._mean is None:
            self._mean = run.data.train.statistics()[0]
        levels = (255 * batch.x).round().to(torch.uint8)
        draws = run.uniform("randaugment", batch, (self.operations, 2))
        batch.x = rand_augmented(levels, draws, self.magnitude, self._mean).float() / 255


def rand_augmented(x: Tensor, draws: Tensor, magnitude: float, mean: Tensor) -> Tensor:
    """torchvision's RandAugment on every image of a batch (n, C, H, W) uint8, on its device.

    `draws` (n, N, 2) in [0, 1): for each of the N operations which one it is, and in which direction. `mean` as in
    `policy_on`.
    """
    operations, numbers = _rand_augment(magnitude, *x.shape[2:], x.device)
    fill = _colour(tuple((255 * mean).round().int().tolist()), x.device)
    for which, sign in (operation.unbind(dim=1) for operation in draws.unbind(dim=1)):
        chosen = (which * len(numbers)).long().clamp_max(len(numbers) - 1)
        x = _operated(x, operations, numbers[chosen, (sign > 0.5).long()], fill)
    return x


def policy_on(x: Tensor, draws: Tensor, mean: Tensor) -> Tensor:
    """torchvision's CIFAR-10 policy on images x (n, C, H, W) uint8, each with its own draws.

    `draws` (n, 5) in [0, 1): the sub-policy, and for each of its two operations whether it is applied and in which
    direction. `mean` (C,) in [0, 1] fills what comes from outside.
    """
    fill = _colour(tuple((255 * mean).round().int().tolist()), x.device)
    for number in range(2):
        operations, numbers, probabilities = _policy(number, *x.shape[2:], x.device)
        chosen = (draws[:, 0] * len(numbers)).long().clamp_max(len(numbers) - 1)
        applied, sign = draws[:, 1 + 2 * number], draws[:, 2 + 2 * number]
        which = numbers[chosen, (sign > 0.5).long()]
        x = _operated(x, operations, torch.where(applied <= probabilities[chosen], which, -1), fill)
    return x


Operation = tuple[str, float]
"""Name and size, of torchvision's."""


@cache
def _policy(number: int, height: int, width: int, device: torch.device) -> tuple[list[Operation], Tensor, Tensor]:
    """The first or the second operations of the sub-policies, `_numbered`, and their probabilities (25,)."""
    listed, probabilities = [], []
    for name, probability, bin_of_ten in (policy[number] for policy in _torchvisions()._policies):
        sizes, signed = _torchvisions()._AUGMENTATION_SPACE[name]
        listed.append((name, _size(sizes(10, height, width), bin_of_ten), signed))
        probabilities.append(probability)
    return *_numbered(listed, device), torch.tensor(probabilities, device=device)


@cache
def _rand_augment(magnitude: float, height: int, width: int, device: torch.device) -> tuple[list[Operation], Tensor]:
    """RandAugment's operations, `_numbered`."""
    from torchvision.transforms import v2

    bins, space = 31, v2.RandAugment._AUGMENTATION_SPACE
    place = round(magnitude * (bins - 1))
    listed = [(name, _size(sizes(bins, height, width), place), signed) for name, (sizes, signed) in space.items()]
    return _numbered(listed, device)


def _size(sizes: Tensor | None, place: int) -> float:
    return 0.0 if sizes is None else float(sizes[place])


def _numbered(listed: Sequence[tuple[str, float, bool]], device: torch.device) -> tuple[list[Operation], Tensor]:
    """The different ones of listed operations, and which of them each is, (n, 2): turned around, and as it stands.

    Listed with each: whether it has two directions.
    """
    different: dict[Operation, int] = {}
    numbers = [
        [different.setdefault((name, way * size), len(different)) for way in ((-1, 1) if signed else (1, 1))]
        for name, size, signed in listed
    ]
    return list(different), torch.tensor(numbers, device=device)


def _operated(x: Tensor, operations: Sequence[Operation], which: Tensor, fill: Tensor) -> Tensor:
    """To each image the operation of its number in `which` (n,), none where it is -1: each once for all of its images.

    On a GPU on all images, so that nobody has to wait and see which they are.
    """
    before = x
    for number, (name, size) in enumerate(operations):
        images = which == number
        if x.is_cuda:
            x = torch.where(images.view(-1, 1, 1, 1), _operation(before, name, size, fill), x)
        elif len(index := images.nonzero().flatten()):
            x = x.index_copy(0, index, _operation(before[index], name, size, fill))
    return x


def _operation(x: Tensor, name: str, size: float, fill: Tensor) -> Tensor:
    """torchvision's, without the constants that it copies to the device, for which a GPU waits."""
    if name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        outside = fill.view(1, -1, 1).expand(len(x), -1, 1)
        return torch.cat([outside, x.flatten(2)], dim=2)[:, :, _sources(name, size, *x.shape[2:], x.device)].view_as(x)
    if name == "Sharpness":
        return _sharpened(x, 1 + size)
    policy = _torchvisions()
    return policy._apply_image_or_video_transform(x, name, size, policy.interpolation, policy._fill)


@cache
def _torchvisions() -> Any:
    from torchvision.transforms import v2
    from torchvision.transforms.autoaugment import AutoAugmentPolicy

    return v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=0)


@cache
def _colour(levels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8, device=device)


@cache
def _sources(name: str, size: float, height: int, width: int, device: torch.device) -> Tensor:
    """From where an operation takes each pixel, (H W,): its place from 1 on, or 0 from outside of the image."""
    places = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    policy = _torchvisions()
    moved = policy._apply_image_or_video_transform(places, name, size, policy.interpolation, policy._fill)
    return moved.round().long().flatten().to(device)


def _sharpened(x: Tensor, factor: float) -> Tensor:
    """Blended with the mean of 3x3 pixels, the middle counted five times; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    levels = x.float()
    inside = levels[:, :, 1:-1, 1:-1]
    blurred = ((F.avg_pool2d(levels, 3, stride=1, divisor_override=1) + 4 * inside) / 13).round()  # sums are exact
    inside.add_(blurred - inside, alpha=1 - factor)
    return levels.clamp_(0, 255).to(torch.uint8)
