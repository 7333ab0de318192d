"""The shapes of the weights in a file, and how many classes they tell, without torch, which takes seconds to load."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hookflat.errors import UserError

LAST_LAYERS = ("fc", "linear", "head", "classifier", "logits")
"""What networks of the field call the layer of their logits."""
_LARGEST = 2**26
"""Bytes of the pickle of a file that `torch.save` wrote; the tensors lie beside it."""


class _Shape(tuple[int, ...]):
    """In the place of a tensor."""


def _tensor(storage: Any, offset: Any, shape: tuple[int, ...], *more: Any) -> _Shape:
    return _Shape(shape)


def _parameter(shape: _Shape, *more: Any) -> _Shape:
    return shape


_READ = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Shapes(pickle.Unpickler):
    """Calls functions of this module alone, whatever a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) not in _READ:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return _READ[module, name]

    def persistent_load(self, pid: Any) -> None:
        """A storage, which is not read."""


def shapes_in(file: Path, key: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a `.safetensors` file, or in one of plain tensors that `torch.save` wrote.

    `key` chooses among several sets. Empty where the file does not tell them so: what is wrong with it is told by
    `read_weights`.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="np") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        held = _of_zip(file) if zipfile.is_zipfile(file) else _of_older(file)
    except Exception:  # a file of others', read by parsers that raise what they like
        return {}
    return _one_of(held, key)


def _of_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith("/data.pkl"))
        if member.file_size > _LARGEST:
            return None
        with archive.open(member) as opened:
            return _Shapes(opened).load()


def _of_older(file: Path) -> Any:
    """Of torch before 1.6: a magic number, a version and facts of the machine come first."""
    with file.open("rb") as opened:
        return [_Shapes(opened).load() for _ in range(4)][-1]


def _one_of(held: Any, key: str | None) -> dict[str, tuple[int, ...]]:
    """The only set of shapes by name, or the one under `key`."""
    if not isinstance(held, Mapping):
        return {}
    if key is None and _are_shapes(held):
        return dict(held)
    sets = [value for name, value in held.items() if key in (None, name) and _are_shapes(value)]
    return dict(sets[0]) if len(sets) == 1 else {}


def _are_shapes(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(shape, _Shape) for name, shape in value.items())


def classes_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """How many logits the network of weights of these shapes gives, by its last linear layer; None where none is
    called so."""
    for name, bias in reversed(list(shapes.items())):
        layer = name.removesuffix(".bias")
        weight = shapes.get(f"{layer}.weight", ())
        if layer.rpartition(".")[2] in LAST_LAYERS and len(weight) == 2 and len(bias) == 1:
            return weight[0] if weight[0] == bias[0] else None
    return None


def check_classes(weights: int | None, data: int | None) -> None:
    """Raises UserError where both are known and differ."""
    if None not in (weights, data) and weights != data:
        raise UserError(
            f"the weights are of a network of {weights} classes, and the data has {data}: measure it on the data that "
            "it was trained on (--data), or another file"
        )
