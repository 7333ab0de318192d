"""What a run's records say about its examples."""

from __future__ import annotations

from typing import Any

import torch

from hookflat.functional.data import Data, Images
from hookflat.functional.seeds import fingerprint


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
