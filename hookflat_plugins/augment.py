"""Random crop and flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Run, UserError, hookimpl


@dataclass(eq=False)
class Augment:
    """Random crop after padding, and horizontal flip: the usual augmentation (CIFAR-10: padding 4, flip).

    Drawn for each example; the flip has probability 1/2 (protocol, section 3 and quirk 17).
    """

    off: ClassVar[dict[str, Any]] = {"padding": 0, "flip": False}

    padding: Annotated[int, Field(ge=0, description="pixels added on each side before the crop")] = 4
    flip: Annotated[bool, Field(description="mirror half of the images")] = True
    fill: Annotated[
        Literal["zero", "mean", "reflect"],
        Field(description="what is padded: black, the mean colour, the mirrored image"),
    ] = "zero"

    def __post_init__(self) -> None:
        self._mean: Tensor | None = None

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        draws = run.uniform("augment", batch, (3,))
        if self.padding:
            batch.x = self._cropped(run, batch.x, draws[:, :2])
        if self.flip:
            batch.x = torch.where((draws[:, 2] < 0.5)[:, None, None, None], batch.x.flip(3), batch.x)

    def _cropped(self, run: Run, x: Tensor, draws: Tensor) -> Tensor:
        n, _, height, width = x.shape
        padded = self._padded(run, x)
        offset = (draws * (2 * self.padding + 1)).long()
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(n, device=x.device), :, offset[:, 0], offset[:, 1]].contiguous()

    def _padded(self, run: Run, x: Tensor) -> Tensor:
        around = [self.padding] * 4
        if self.fill == "reflect":
            if self.padding >= min(x.shape[2:]):
                raise UserError(
                    f"plugins.augment.padding = {self.padding} mirrors more than images of {tuple(x.shape[2:])}"
                )
            return F.pad(x, around, mode="reflect")
        if self._mean is None:
            mean = run.data.train.statistics()[0].to(x)
            self._mean = (mean if self.fill == "mean" else torch.zeros_like(mean)).view(1, -1, 1, 1)
        return F.pad(x - self._mean, around) + self._mean
