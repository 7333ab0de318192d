"""Images from files, through Hugging Face datasets, decoded once to uint8."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
            if _hub_answers():
                return datasets.load_dataset(path)
            with _offline():  # what was downloaded before is found
                return datasets.load_dataset(path)
        files = {s: sorted(map(str, folder.rglob(f"{s}*.parquet"))) for s in splits}
        if any(files.values()):
            return datasets.load_dataset("parquet", data_files={s: f for s, f in files.items() if f})
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{option} = {path!r} cannot be loaded: {reason} "
            "(give a local folder of parquet or image files, or a hub id that can be reached; what another machine "
            "downloaded is found under HF_HOME)"
        ) from error


def _hub_answers() -> bool:
    """Whether the hub can be reached: asked once, for two seconds, where the libraries try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # not for us to look through
    hub = urlsplit(constants.ENDPOINT)
    answered: list[bool] = []

    def ask() -> None:
        with suppress(OSError), socket.create_connection((hub.hostname, hub.port or 443), timeout=2):
            answered.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time-out of its own
    asking.start()
    asking.join(2)
    return bool(answered)


@contextmanager
def _offline() -> Generator[None]:
    """Hugging Face's libraries use what they have, and ask nobody."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


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
