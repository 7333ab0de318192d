"""The embedded data set: handwritten digits of the UCI repository, real images with no download."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hookflat import UserError, hookimpl

if TYPE_CHECKING:
    from hookflat import Data


@dataclass(eq=False)
class Digits:
    """Handwritten digits, 8x8 gray, 10 classes, shipped with the package; scikit-learn's `load_digits` has the same.

    Split by position, as neighbouring images share a writer: the first `train`, and the last `test` of 1797. Those
    between are left for plugins that want images without labels. The images are licensed under CC BY 4.0.
    """

    paper: ClassVar[str] = "E. Alpaydin, C. Kaynak, UCI Machine Learning Repository (1998), doi 10.24432/C50P49"

    train: Annotated[int, Field(ge=1, le=1796, description="training images, the first ones")] = 600
    test: Annotated[int, Field(ge=1, le=1796, description="test images, the last ones")] = 700

    classes: Annotated[
        list[Annotated[int, Field(ge=0, le=9)]],
        Field(description="those to take, numbered anew in this order; []: all ten"),
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.classes and self.train + self.test > 1797:
            raise ValueError(f"train = {self.train} and test = {self.test} overlap: there are 1797 images")
        if self.classes and not 1 < len(set(self.classes)) == len(self.classes):
            raise ValueError("classes: two or more, each once")

    def known_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes) or 10

    @hookimpl
    def build_data(self) -> Data:
        import numpy as np
        import torch

        from hookflat import Data, Images

        with np.load(Path(__file__).with_name("digits.npz")) as digits:
            x = torch.from_numpy(digits["images"] * (255 / 16)).round().to(torch.uint8)[:, None]
            y = torch.from_numpy(digits["labels"]).long()
        if self.classes:
            kept = torch.tensor(self.classes)
            rows = torch.isin(y, kept)
            x, y = x[rows], (y[rows, None] == kept).int().argmax(dim=1)
        images = Images(x, y)
        if self.train + self.test > len(images):
            raise UserError(
                f"data.train = {self.train} and data.test = {self.test} overlap: there are {len(images)} digits of "
                "these classes"
            )
        last = len(images) - self.test
        left = images.x[self.train : last]
        return Data(
            images.part(0, self.train),
            images.part(last, len(images)),
            self.known_classes(),
            unused=(lambda count: left[: count or None]) if len(left) else None,
            about={
                "train": {"of": len(images), "rows": [[0, self.train - 1]]},
                "test": {"of": len(images), "rows": [[last, len(images) - 1]]},
            },
        )
