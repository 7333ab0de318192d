"""Threats and attacks as values, and the balls of images in which attacks move: a norm is one class of this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from hookflat.functional import seeds

Norm = Literal["Linf", "L2", "L1"]
Start = Literal["uniform_norm", "uniform", "gaussian", "zero"]
Precision = Literal["fp32", "bf16", "auto"]


class Ball(Protocol):
    """The images that a threat allows in place of a batch `x` (n, C, H, W) in [0, 1]."""

    def start(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        """Where an attack begins; an example's draw depends on its key ((n,) int64) and on the seed alone."""
        ...

    def ascent(self, gradient: Tensor) -> Tensor:
        """The direction of length one, in the threat's norm, in which a gradient rises most steeply."""
        ...

    def project(self, x_adv: Tensor) -> Tensor:
        """The allowed image nearest to `x_adv`."""
        ...

    def part(self, index: Tensor) -> Ball:
        """The same for some of the examples."""
        ...


@dataclass(frozen=True)
class Threat:
    """An adversary who may move an image by at most `eps` in a norm, inside [0, 1]."""

    eps: float = 8 / 255
    norm: Norm = "Linf"

    def ball(self, x: Tensor) -> Ball:
        """Around images (n, C, H, W). Raises ValueError for a norm in which PGD cannot move."""
        if self.norm not in BALLS:
            raise ValueError(f"PGD knows the norms {', '.join(BALLS)}, not {self.norm}")
        return BALLS[self.norm](x, self.eps)


class AttackOptions(TypedDict, total=False):
    """The values of an `Attack` as keywords: what functions take one by one instead of `attack`."""

    eps: float
    norm: Norm
    step_size: float
    steps: int
    restarts: int
    start: Start
    precision: Precision


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent under a threat: `restarts` starts, `steps` steps of length `step_size` from each.

    Without restarts, measures take the images as they are. `precision`: of the search's convolutions; "auto" is bf16
    where this device is faster in it. Measures take their numbers from the network in its own precision, and search
    again in fp32 what bf16 did not break. Raises ValueError for negative numbers.
    """

    threat: Threat = field(default_factory=Threat)
    step_size: float = 0.007
    steps: int = 20
    restarts: int = 1
    start: Start = "uniform_norm"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.restarts < 0 or self.steps < 0:
            raise ValueError(f"an attack needs restarts >= 0 and steps >= 0, not {self.restarts} and {self.steps}")

    def but(self, **options: Unpack[AttackOptions]) -> Attack:
        """The same with other values."""
        given = dict(options)
        threat = replace(self.threat, **{name: given.pop(name) for name in ("eps", "norm") if name in given})
        return replace(self, threat=threat, **given)


class LinfBall:
    """Every pixel within `eps` of the image's, and in [0, 1]."""

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x, self.eps = x, eps
        self.low, self.high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)

    def start(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        """x + delta, clipped.

        uniform_norm: Gaussian direction, L-infinity norm uniform in [0, eps] (Stutz et al. 2021, the paper's).
        uniform: every entry uniform in [-eps, eps] (Madry et al. 2018, Rice et al. 2020, AWP).
        gaussian: 0.001 N(0, I) (the official TRADES and MART code, which clips it only after the first step).
        """
        return self.project(self.x + self._delta(kind, keys, seed).to(self.x))

    def _delta(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        shape = tuple(self.x.shape[1:])
        if kind == "zero":
            return torch.zeros_like(self.x)
        if kind == "uniform":
            return self.eps * (2 * seeds.uniform(keys, shape, seed) - 1)
        direction = seeds.normal(keys, shape, seed)
        if kind == "gaussian":
            return (0.001 * direction).clamp(-self.eps, self.eps)
        norm = direction.flatten(1).abs().amax(dim=1).clamp_min(1e-12)
        radius = self.eps * seeds.uniform(keys, (), seeds.derive_seed(seed, "radius"))
        return direction * (radius / norm).view(-1, *[1] * len(shape))

    def ascent(self, gradient: Tensor) -> Tensor:
        """Its signs."""
        return gradient.sign()

    def project(self, x_adv: Tensor) -> Tensor:
        """Clipped pixel by pixel."""
        return torch.clamp(x_adv, self.low, self.high)

    def part(self, index: Tensor) -> LinfBall:
        """Around the images at `index`."""
        return LinfBall(self.x[index], self.eps)


BALLS: dict[str, Callable[[Tensor, float], Ball]] = {"Linf": LinfBall}
"""Norm to the ball in which PGD moves."""
