"""How values look in a notebook: numbers that can be read, tensors by their sizes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor, nn


class Shown:
    """A dataclass whose representation is a line: it is made with `repr=False`."""

    def __repr__(self) -> str:
        parts = [f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self) if f.repr]  # ty: ignore
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    match value:
        case float() | Tensor(ndim=0):
            text = f"{float(value):.4g}"
        case Tensor():
            text = f"<{' x '.join(map(str, value.shape))}>"
        case nn.Module():
            text = f"<{type(value).__name__}, {sum(p.numel() for p in value.parameters()):,} parameters>"
        case list() | tuple():
            text = f"[{', '.join(map(_short, value))}]" if len(value) < 6 else f"<{len(value)} values>"
        case dict():
            text = f"{{{', '.join(f'{name}: {_short(v)}' for name, v in value.items())}}}"
        case _:
            text = repr(value)
    return text
