"""Images from files, through Hugging Face datasets, decoded once to uint8."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hookflat.errors import UserError


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
