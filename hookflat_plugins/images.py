"""Images from parquet files, an image folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Data, Images, Run, UserError, decoded, hookimpl, load_sets


@dataclass(eq=False)
class ImageFiles:
    """Labelled images through Hugging Face datasets: local parquet, an image folder, or a hub id.

    A folder holds train*.parquet and test*.parquet, or train/ and test/ with a folder for each class. Columns are found
    by their type (an image, a class label). Every image is decoded once and kept in memory as uint8.
    """

    path: Annotated[str, Field(description="folder of parquet or image files, or a hub id")] = "uoft-cs/cifar10"
    train_split: Annotated[str, Field(description="name of the training split")] = "train"
    test_split: Annotated[str, Field(description="name of the test split")] = "test"
    image: Annotated[str | None, Field(description="column of the images, if there are several")] = None
    label: Annotated[str | None, Field(description="column of the labels, if there are several")] = None
    size: Annotated[int, Field(ge=0, description="pixels a side to resize to; 0: as they are")] = 0
    train: Annotated[int, Field(ge=0, description="training images, the first of the split; 0: all")] = 0
    test: Annotated[int, Field(ge=0, description="test images, the first of the split; 0: all")] = 0

    @hookimpl
    def build_data(self, run: Run) -> Data:
        splits = (self.train_split, self.test_split)
        with run.accelerator.main_process_first():  # the others find what the first one cached
            sets = load_sets(self.path, splits, "data.path")
        for split in splits:
            if split not in sets:
                raise UserError(f"data.path = {self.path!r} has no split {split!r}, only {', '.join(map(repr, sets))}")
        columns = self._columns(sets[self.train_split].features)
        parts = [_first(sets[s], n, s) for s, n in zip(splits, (self.train, self.test), strict=True)]
        train, test = (self._decode(part, *columns) for part in parts)
        label = sets[self.train_split].features[columns[1]]
        classes = getattr(label, "num_classes", None) or int(max(train.y.max(), test.y.max())) + 1
        return Data(train, test, classes, unused=self._unused(sets[self.train_split], columns[0]))

    def _columns(self, features: Any) -> tuple[str, str]:
        from datasets import ClassLabel, Image, Value

        images = [self.image] if self.image else [n for n, f in features.items() if isinstance(f, Image)]
        labels = [self.label] if self.label else [n for n, f in features.items() if isinstance(f, ClassLabel)]
        if not labels:
            labels = [n for n, f in features.items() if isinstance(f, Value) and f.dtype.startswith("int")]
        for kind, found in (("image", images), ("label", labels)):
            if len(found) != 1 or found[0] not in features:
                raise UserError(
                    f"data.path = {self.path!r}: set data.{kind} to one of the columns {', '.join(features)} "
                    f"(found by type: {', '.join(map(str, found)) or 'none'})"
                )
        return images[0], labels[0]

    def _unused(self, split: Any, image: str) -> Callable[[int], Tensor] | None:
        """What decodes training images behind the first `train`."""
        if not self.train or self.train == len(split):
            return None

        def behind(count: int) -> Tensor:
            stop = min(self.train + count, len(split)) if count else len(split)
            left = split.select(range(self.train, stop))
            return decoded(left, image, self.size, f"data.path = {self.path!r}", "data.size")

        return behind

    def _decode(self, split: Any, image: str, label: str) -> Images:
        x = decoded(split, image, self.size, f"data.path = {self.path!r}", "data.size")
        return Images(x, torch.as_tensor(split.with_format("numpy")[label][:]).long())


def _first(split: Any, examples: int, name: str) -> Any:
    """The first examples of a split; all where none are counted."""
    if examples > len(split):
        raise UserError(f"data.path: the split {name!r} has {len(split)} examples, not {examples}")
    return split.select(range(examples)) if examples else split
