"""What tells one network from another, and its copy on the same memory."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Hashable, Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class NoCopyError(Exception):
    """A network that Python cannot copy."""


def identity(model: nn.Module) -> Hashable:
    """Everything about a network that may change what it computes, but for the values of its tensors."""
    modules = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = ((k, v) for k, v in vars(module).items() if k not in _OF_EVERY_MODULE)
        settings = tuple((k, _content(v)) for k, v in own)
        modules.append((name, id(module), type(module), settings))
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return tuple(modules), tuple((n, t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for n, t in tensors)


def _content(value: Any, depth: int = 3) -> Hashable:
    """What an attribute holds, so that a change in place shows: of containers their items, of namespaces their own."""
    if isinstance(value, int | float | str | None):
        return str(value) if isinstance(value, float) else value  # NaN is not equal to itself
    if depth and isinstance(value, dict | SimpleNamespace | argparse.Namespace):
        items = value if isinstance(value, dict) else vars(value)
        return id(value), tuple((k, _content(v, depth - 1)) for k, v in items.items())
    if depth and isinstance(value, list | tuple):
        return id(value), tuple(_content(v, depth - 1) for v in value)
    return id(value)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the model's own memory, frozen."""
    memo: dict[int, Tensor] = {id(b): b for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    held = (t for m in model.modules() for k, v in vars(m).items() if k not in _OF_EVERY_MODULE for t in _tensors_in(v))
    memo |= {id(t): t.detach() for t in held if id(t) not in memo}  # of a pass, weight norm's: they cannot be copied
    try:
        return copy.deepcopy(model, memo).eval()
    except (TypeError, RuntimeError) as error:
        raise NoCopyError from error


def _tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """An attribute that is a tensor, and those in containers."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth - 1)
