"""Data sets through Hugging Face datasets: parquet, arrow, image folders, and the hub."""

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

from hookflat.errors import UserError

_WHAT_TO_GIVE = (
    "give a local folder of parquet or image files, or a hub id that can be reached; what another machine downloaded "
    "is found under HF_HOME"
)


def read_sets(path: str, splits: tuple[str, ...], option: str, config: str | None = None) -> Any:
    """The splits of a hub id, or of a file or folder of parquet, arrow or images.

    Raises UserError, naming `option`, where it cannot be loaded, and the file, where one is damaged.
    """
    import datasets  # here, so that a look at the options stays fast
    from datasets.exceptions import DatasetsError

    place = Path(path).expanduser()
    files: dict[str, list[str]] = {}
    try:
        if not place.exists():
            return _from_hub(path, config)
        if (place / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(place))
        for kind in ("parquet", "arrow"):
            files = _files(place, splits, kind)
            if files:
                return datasets.load_dataset(kind, data_files=files)
        return datasets.load_dataset("imagefolder", data_dir=str(place))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # a full disk under HF_HOME
        damaged = _damaged(files)
        if damaged:
            raise UserError(f"{option} = {path!r} cannot be loaded: {damaged} (download it again)") from error
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(f"{option} = {path!r} cannot be loaded: {reason} ({_WHAT_TO_GIVE})") from error


def _files(place: Path, splits: tuple[str, ...], kind: str) -> dict[str, list[str]]:
    """The files of each split, told by the beginning of their names; a single file is whichever split is asked for."""
    if place.is_file():
        return {splits[0]: [str(place)]} if place.suffix == f".{kind}" and len(splits) == 1 else {}
    found = {s: sorted(map(str, place.rglob(f"{s}*.{kind}"))) for s in splits}
    return {s: files for s, files in found.items() if files}


def _damaged(files: dict[str, list[str]]) -> str:
    """The first file that cannot be read to its end, and why; "" where there is none."""
    import pyarrow as pa
    from pyarrow import parquet

    for file in (f for listed in files.values() for f in listed):
        try:
            if file.endswith(".parquet"):
                with parquet.ParquetFile(file) as opened:
                    for _ in opened.iter_batches(256):
                        pass
            else:
                with pa.memory_map(file) as opened:
                    for _ in pa.ipc.open_stream(opened):
                        pass
        except (pa.ArrowException, OSError) as error:
            return f"{file} is damaged: {str(error).splitlines()[0]}"
    return ""


def _from_hub(path: str, config: str | None) -> Any:
    import datasets

    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise FileNotFoundError("no such file or folder")
    if _hub_answers():
        return datasets.load_dataset(path, config)
    with _offline():  # what was downloaded before is found
        return datasets.load_dataset(path, config)


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
