"""Images from parquet files, an image folder or the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from hookflat import UserError, hookimpl
from hookflat.functional.data import Data, Images
from hookflat.training.run import Run


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
        with run.accelerator.main_process_first():  # the others find what the first one cached
            sets = self._load()
        for split in (self.train_split, self.test_split):
            if split not in sets:
                raise UserError(f"data.path = {self.path!r} has no split {split!r}, only {', '.join(map(repr, sets))}")
        columns = self._columns(sets[self.train_split].features)
        train, test = (self._decode(sets[s], *columns) for s in (self.train_split, self.test_split))
        label = sets[self.train_split].features[columns[1]]
        classes = getattr(label, "num_classes", None) or int(max(train.y.max(), test.y.max())) + 1
        return Data(train, test, classes)

    def _load(self) -> Any:
        return load_sets(self.path, (self.train_split, self.test_split), "data.path")

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


def load_sets(path: str, splits: tuple[str, ...], option: str) -> Any:
    """The splits of a folder of parquet files named after them, of an image folder, or of a hub id.

    Raises UserError, naming `option`, where it cannot be loaded.
    """
    import datasets  # here, so that a look at the options stays fast

    folder = Path(path).expanduser()
    try:
        if not folder.exists():
            if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
                raise FileNotFoundError("no such folder")
            return datasets.load_dataset(path)
        files = {s: sorted(map(str, folder.rglob(f"{s}*.parquet"))) for s in splits}
        if any(files.values()):
            return datasets.load_dataset("parquet", data_files={s: f for s, f in files.items() if f})
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{option} = {path!r} cannot be loaded: {reason} "
            "(give a local folder of parquet or image files, or a hub id that can be reached)"
        ) from error


def decoded(split: Any, image: str, size: int, source: str, option: str) -> Tensor:
    """All images of a column: (N, C, H, W) uint8, resized to `size` pixels a side unless that is 0.

    Raises UserError, naming `source` and the `option` to set, where they differ in size or mode.
    """
    if size:
        split = split.map(lambda row: {image: row[image].resize((size, size))})
    pixels = []
    for rows in split.select_columns([image]).with_format("numpy").iter(batch_size=5000):
        stack = rows[image]
        if stack.dtype == object:
            raise UserError(f"{source} has images of several sizes or modes: set {option}")
        pixels.append(torch.from_numpy(stack.copy()))
    x = torch.cat(pixels)
    return x[:, None] if x.dim() == 3 else x.movedim(3, 1).contiguous()
