"""Data sets through Hugging Face datasets: parquet, arrow, image folders, and the hub."""

from __future__ import annotations

import json
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
    "give a local file or folder of images, or a hub id that can be reached; what another machine downloaded is found "
    "under HF_HOME, and HF_HUB_OFFLINE=1 asks for nothing else"
)
_PATIENCE = 2.0
"""Seconds for the hub to answer; the libraries try for half a minute."""


def read_sets(path: str, splits: tuple[str, ...], option: str, config: str | None = None) -> Any:
    """The splits of a hub id, or of a file or folder of parquet, arrow or images.

    Raises UserError, naming `option`, where it cannot be loaded, and the file, where one is damaged.
    """
    check_there(path, option)
    import datasets  # here, so that a look at the options stays fast
    from datasets.config import HF_DATASETS_CACHE
    from datasets.exceptions import DatasetsError

    place = Path(path).expanduser()
    files: dict[str, list[str]] = {}
    try:
        if not place.exists():
            return _from_hub(path, config)
        if (place / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(place))
        if (place / "state.json").exists():  # one set alone, which has a name where it was a split
            alone: Any = datasets.load_from_disk(str(place))
            return {str(alone.split or splits[0]): alone}
        for kind in ("parquet", "arrow"):
            files = _files(place, splits, kind)
            if files:
                return datasets.load_dataset(kind, data_files=files)
        return datasets.load_dataset("imagefolder", data_dir=str(place))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, FileNotFoundError):
            cause.filename = cause.filename or str(HF_DATASETS_CACHE)  # full, where they are unpacked
            raise cause from None
        wrong = _wrong(files)
        if wrong:
            raise UserError(f"{option} = {path!r} cannot be loaded: {wrong}") from error
        reason = " ".join(line.strip() for line in str(cause).splitlines()[:2]) or type(cause).__name__
        raise UserError(f"{option} = {path!r} cannot be loaded: {reason} ({_WHAT_TO_GIVE})") from error


def check_there(path: str, option: str) -> None:
    """Raises UserError, naming `option`, where `path` is nothing here, and no hub id that was or can be downloaded.

    Nothing of it is read, and `datasets` is not imported, which takes seconds.
    """
    if Path(path).expanduser().exists():
        return
    a_file = re.search(r"\.(gz|tgz|tar|npz|mat|pkl|pickle|parquet|arrow)$", path)
    if a_file or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        reason = "no such folder or file"
    elif _downloaded(path):
        return
    elif not _hub_answers():
        reason = "there is no such folder, nothing of that name was downloaded, and the hub does not answer"
    elif not _on_the_hub(path):
        reason = "there is no such folder, and no such data set on the hub (a private one wants hf auth login)"
    else:
        return
    raise UserError(f"{option} = {path!r} cannot be loaded: {reason} ({_WHAT_TO_GIVE})")


def classes_in(path: str, split: str, label: str | None = None) -> int | None:
    """How many classes the files of a split name, of the column `label` where they have several.

    Read is what parquet files say of themselves; None where that does not tell.
    """
    files = _files(Path(path).expanduser(), (split,), "parquet")
    if not files:
        return None
    from pyarrow import parquet

    try:
        noted = json.loads((parquet.read_schema(files[split][0]).metadata or {})[b"huggingface"])["info"]["features"]
        named = [f["names"] for name, f in noted.items() if f["_type"] == "ClassLabel" and label in (None, name)]
    except Exception:  # a file of others'; what is wrong with it is told when it is read
        return None
    return len(named[0]) if len(named) == 1 else None


def _files(place: Path, splits: tuple[str, ...], kind: str) -> dict[str, list[str]]:
    """The files of each split, told by the beginning of their names; a single file is whichever split is asked for."""
    if place.is_file():
        return {splits[0]: [str(place)]} if place.suffix == f".{kind}" and len(splits) == 1 else {}
    by_split = {s: sorted(map(str, place.rglob(f"{s}*.{kind}"))) for s in splits}
    return {s: files for s, files in by_split.items() if files}


def _wrong(files: dict[str, list[str]]) -> str:
    """The first file that cannot be read to its end, and why, the first split without rows, or the first column of
    several types; "" where all is well."""
    import pyarrow as pa

    columns: list[tuple[str, Any, str]] = []
    for split, listed in files.items():
        rows = 0
        for file in listed:
            try:
                count, schema = _read(file)
            except (pa.ArrowException, OSError) as error:
                return f"{file} is damaged: {str(error).splitlines()[0]} (download it again)"
            rows += count
            columns += [(column.name, column.type, file) for column in schema]
        if not rows:
            return f"the split {split!r} has no rows"
    first: dict[str, tuple[Any, str]] = {}
    for name, kind, file in columns:
        known, where = first.setdefault(name, (kind, file))
        if kind != known:
            return f"the column {name!r} is {known} in {where}, and {kind} in {file}"
    return ""


def _read(file: str) -> tuple[int, Any]:
    """How many rows a file has, each of them read, and its schema."""
    import pyarrow as pa
    from pyarrow import parquet

    if file.endswith(".parquet"):
        with parquet.ParquetFile(file) as opened:
            return sum(batch.num_rows for batch in opened.iter_batches(256)), opened.schema_arrow
    with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as opened:
        return sum(batch.num_rows for batch in opened), opened.schema


def _from_hub(path: str, config: str | None) -> Any:
    import datasets

    if not _downloaded(path) or _hub_answers():
        return datasets.load_dataset(path, config)
    with _offline():
        try:
            return datasets.load_dataset(path, config)  # what was downloaded before is found
        except ConnectionError:
            raise ConnectionError("the hub does not answer, and no earlier download of it is here") from None


def _downloaded(path: str) -> bool:
    """Whether `datasets` has a hub id in its cache, where `CIFAR-10` of `Some` is in a folder `Some___cifar-10`."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")).expanduser()
    wanted = path.replace("/", "").replace("_", "").lower()
    return cache.is_dir() and any(f.name.replace("_", "").lower() == wanted for f in cache.iterdir() if f.is_dir())


def _on_the_hub(path: str) -> bool:
    """Whether the hub knows a data set; so too where it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi(library_name="hookflat").dataset_info(path, timeout=5)
    except RepositoryNotFoundError:
        return False
    except Exception:  # told when it is loaded
        return True
    return True


def _hub_answers() -> bool:
    """Whether the hub can be reached: asked once, and not for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # not for us to look through
    hub = urlsplit(constants.ENDPOINT)
    answered: list[bool] = []

    def ask() -> None:
        with suppress(OSError), socket.create_connection((hub.hostname, hub.port or 443), timeout=_PATIENCE):
            answered.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time-out of its own
    asking.start()
    asking.join(_PATIENCE)
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
