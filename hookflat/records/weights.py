"""Weights in a run's folder: safetensors files, each with a checksum of what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hookflat.errors import UserError
from hookflat.functional.seeds import fingerprint, named
from hookflat.recipe.tables import as_json
from hookflat.records.disk import replacing
from hookflat.records.texts import sound_json

_CHECKSUM = "checksum"


def save_weights(file: Path, model: nn.Module, /, **about: Any) -> None:
    """Weights as safetensors, written beside and renamed into place; `about` and a checksum go into its metadata."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    known = json.dumps(json.loads(as_json(about)) | {_CHECKSUM: _checksum(tensors, about)})
    with replacing(file) as beside:  # through Python: what safetensors writes itself only its owner may read
        beside.write_bytes(save(tensors, metadata={"hookflat": known}))  # one key: several have no fixed order


def load_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_weights` wrote. Raises UserError where it cannot be read, or one bit is not as it was written."""
    try:
        tensors, about = load_file(file), _metadata(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    written = about.pop(_CHECKSUM, None)  # earlier versions wrote none
    if written not in (None, _checksum(tensors, about)):
        raise UserError(f"{file} is damaged: its checksum is not that of the weights in it; put it back from a copy")
    return tensors, about


def about_weights(file: Path) -> dict[str, Any]:
    """What `save_weights` noted in a file."""
    return {name: value for name, value in _metadata(file).items() if name != _CHECKSUM}


def _metadata(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        about = sound_json((opened.metadata() or {}).get("hookflat", "{}"))
    if not isinstance(about, dict):
        raise ValueError("its metadata are not what hookflat writes")
    return about


def _checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    return fingerprint(as_json(about), *named(tensors))
