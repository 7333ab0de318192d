"""Randomness by name: every draw is a function of the run's seed and of what it is for, never of the global state.

A *generator* serves draws that all processes share (the order of the data), and seeds those for weights, which are
drawn where the weights are (`normals_like`). *Keyed* draws serve examples: the numbers of an example depend on its key
alone, so they stay the same whatever the batch size, the number of processes or the device. All but the generators
count (splitmix64): the same numbers on every device, up to rounding of log and cos. Nothing here has to be saved to
resume a run exactly.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order; numpy's and torch's integers are integers."""
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fingerprint(*parts: str | Tensor) -> str:
    """A name of 16 letters for texts and tensors: equal for equal content."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for piece in [part] if isinstance(part, str) or not part.dim() else part.split(2**16):  # large ones are mapped
            digest.update(
                piece.encode()
                if isinstance(piece, str)
                else piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()


def named(tensors: Mapping[str, Tensor]) -> list[str | Tensor]:
    """Tensors as parts of a fingerprint: name and type, then the values, in the order of their names."""
    return [part for name in sorted(tensors) for part in (f"{name} {tensors[name].dtype}", tensors[name])]


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for `parts`; draw on the CPU and move, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), in place. `>>` is arithmetic on int64, hence the masks."""
    shifted = torch.empty_like(z)
    for bits, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        torch.bitwise_right_shift(z, bits, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_(2 ** (64 - bits) - 1))
        if factor != 1:
            z.mul_(factor)
    return z


def _bits(keys: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    counter = torch.arange(1, math.prod(shape) + 1, device=keys.device)
    stream = _mix(_mix(keys.clone()).add_(seed))[:, None]
    return _mix(stream + counter * _GOLDEN).view(len(keys), *shape)


def uniform(keys: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform draws in [0, 1): (n, *shape) float32 on the device of `keys` ((n,) int64, one for each example)."""
    return _high(_bits(keys, shape, seed)).float().div_(2**24)


def normal(keys: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal draws (Box-Muller): (n, *shape) float32 on the device of `keys` ((n,) int64)."""
    radius, angle = _polar(_bits(keys, shape, seed))
    return radius.mul_(angle.cos_())


def _high(bits: Tensor) -> Tensor:
    """The upper 24 bits, in place."""
    return bits.bitwise_right_shift_(40).bitwise_and_(2**24 - 1)


def _polar(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Radius and angle of Box-Muller from the bits, which are used up."""
    angle = torch.bitwise_right_shift(bits, 8).bitwise_and_(2**24 - 1).float().mul_(2 * math.pi / 2**24)
    return _high(bits).add_(1).float().div_(2**24).log_().mul_(-2).sqrt_(), angle


def normals_like(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Standard normal draws in the shape, type and place of each tensor; `generator` (CPU) only seeds them."""
    return _normals(tensors, _each_seed(tensors, generator)) if tensors else []


def groups_of_normals_like(tensors: Sequence[Tensor], generator: torch.Generator) -> Iterator[list[Tensor]]:
    """The draws of `normals_like`, some tensors after the others: as many as the largest has numbers, or fewer."""
    each, most = _each_seed(tensors, generator), max((t.numel() for t in tensors), default=0)
    begin = 0
    while begin < len(tensors):
        end = begin + 1
        while end < len(tensors) and sum(t.numel() for t in tensors[begin : end + 1]) <= most:
            end += 1
        yield _normals(tensors[begin:end], each[begin:end])
        begin = end


def _each_seed(tensors: Sequence[Tensor], generator: torch.Generator) -> list[int]:
    seed = int(torch.randint(2**62, (), generator=generator))
    return [derive_seed(seed, number) for number in range(len(tensors))]


def _normals(tensors: Sequence[Tensor], seeds: Sequence[int]) -> list[Tensor]:
    """Box-Muller, both of each pair; the draws of a tensor depend on its own seed alone."""
    pairs = [t.numel() // 2 + 1 for t in tensors]
    counter = torch.arange(1, max(pairs) + 1, device=tensors[0].device).mul_(_GOLDEN)
    states = torch.cat(torch._foreach_add([counter[:n] for n in pairs], seeds))
    cosines, sines = torch.empty(2, len(states), device=states.device)
    part = len(states) if states.is_cuda else 2**15  # on a CPU a part stays in its caches
    for of_states, cosine, sine in zip(*(t.split(part) for t in (states, cosines, sines)), strict=True):
        radius, angle = _polar(_mix(of_states))
        torch.mul(radius, torch.cos(angle), out=cosine)
        torch.mul(radius, angle.sin_(), out=sine)
    parts = zip(cosines.split(pairs), sines.split(pairs), strict=True)
    return [torch.cat(both)[: t.numel()].view(t.shape).to(t) for t, both in zip(tensors, parts, strict=True)]
