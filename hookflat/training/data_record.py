"""What a run's records say about its examples."""

from __future__ import annotations

from typing import Any

import torch

from hookflat.errors import UserError
from hookflat.functional.data import Data, Images
from hookflat.functional.seeds import fingerprint
from hookflat.records.folder import RunFolder
from hookflat.records.texts import DamagedError, read_json


def data_record(data: Data) -> dict[str, Any]:
    """Where they come from, which and how many they are, and a fingerprint of their content, split by split."""
    parts = {"train": data.train, "test": data.test}
    if data.holdout is not None:
        parts["holdout"] = data.holdout
    record = {"classes": data.num_classes, "image": list(data.train.shape), "source": data.about}
    record |= {name: _split(images, data.num_classes) for name, images in parts.items()}
    return record | ({"holdout_is_the_last_of": data.held_from} if data.holdout is not None else {})


def _split(images: Images, classes: int) -> dict[str, Any]:
    of_each = torch.bincount(images.y.cpu(), minlength=classes).tolist()
    return {"images": len(images), "of_each_class": of_each, "fingerprint": fingerprint(*images.content())}


def check_same_data(folder: RunFolder, record: dict[str, Any]) -> None:
    """Raises UserError where the run in `folder` goes on from a checkpoint, and its own record is of other examples."""
    if folder.last_checkpoint() is None or not folder.data.exists():
        return
    try:
        before = read_json(folder.data)
    except DamagedError:
        return
    for split in ("train", "test", "holdout"):
        was, now = (_fingerprint(of, split) for of in (before, record))
        if was is not None and was != now:
            raise UserError(
                f"{folder.path} was begun with other {split} examples (fingerprint {was}, now {now}): put them back as "
                "they were, choose another folder with --out, or remove it"
            )


def _fingerprint(record: Any, split: str) -> str | None:
    part = record.get(split) if isinstance(record, dict) else None
    return part.get("fingerprint") if isinstance(part, dict) else None
