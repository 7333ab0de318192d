"""Tensors set aside: on disk, where they take no memory until somebody reads them."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def set_aside(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors as they are now, by name and on the CPU, in a file without a name of the temporary directory.

    In memory where there is no room for it.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in named}
    try:
        return dict(zip(tensors, _on_disk([*tensors.values()]), strict=True))
    except OSError:
        return {name: t.clone() for name, t in tensors.items()}


def _on_disk(tensors: Sequence[Tensor]) -> list[Tensor]:
    starts = []
    with tempfile.TemporaryFile() as file:
        for t in tensors:
            starts.append(file.tell())
            file.write(t.view(-1).view(torch.uint8).numpy())
            file.write(bytes(-t.nbytes % 8))  # each begins at a multiple of its items' size
        file.write(bytes(8))  # none is empty
        file.flush()
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return [
        whole[start : start + t.nbytes].view(t.dtype).view(t.shape) for t, start in zip(tensors, starts, strict=True)
    ]
