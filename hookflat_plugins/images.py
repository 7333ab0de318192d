"""Images from parquet files, an image folder or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

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

    @hookimpl
    def build_data(self, run: Run) -> Data:
        splits = (self.train_split, self.test_split)
        with run.accelerator.main_process_first():  # the others find what the first one cached
            sets = load_sets(self.path, splits, "data.path")
        for split in splits:
            if split not in sets:
                raise UserError(f"data.path = {self.path!r} has no split {split!r}, only {', '.join(map(repr, sets))}")
        columns = self._columns(sets[self.train_split].features)
        train, test = (self._decode(sets[s], *columns) for s in splits)
        label = sets[self.train_split].features[columns[1]]
        classes = getattr(label, "num_classes", None) or int(max(train.y.max(), test.y.max())) + 1
        return Data(train, test, classes)

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

    def _decode(self, split: Any, image: str, label: str) -> Images:
        x = decoded(split, image, self.size, f"data.path = {self.path!r}", "data.size")
        return Images(x, torch.as_tensor(split.with_format("numpy")[label][:]).long())
