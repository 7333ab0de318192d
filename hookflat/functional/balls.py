"""The balls of images in which attacks move: a norm is one class of this file, and its name in `BALLS`.

Every ball is cut by the cube [0, 1], and projections are exact: the nearest image in both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from hookflat.functional import seeds
from hookflat.functional.broadcasting import per_image

Start = Literal["uniform_norm", "uniform", "gaussian", "zero"]


class Ball(Protocol):
    """The images that a threat allows in place of a batch `x` (n, C, H, W) in [0, 1]."""

    def start(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        """Where an attack begins; an example's draw depends on its key ((n,) int64) and on the seed alone."""
        ...

    def ascent(self, gradient: Tensor, x_adv: Tensor) -> Tensor:
        """A direction of length one, in the threat's norm, in which the gradient at `x_adv` says that the objective
        rises."""
        ...

    def project(self, x_adv: Tensor) -> Tensor:
        """The allowed image nearest to `x_adv`."""
        ...

    def part(self, index: Tensor) -> Ball:
        """The same for some of the examples."""
        ...


class _Ball(ABC):
    """What the norms share: random starts."""

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x, self.eps = x, eps

    def start(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        """x + delta, projected.

        uniform_norm: Gaussian direction, norm uniform in [0, eps] (Stutz et al. 2021, the paper's; Rice et al. in L2).
        uniform: uniform in the ball (Madry et al. 2018, Rice et al. 2020, AWP).
        gaussian: 0.001 N(0, I) (the official TRADES and MART code, which clips it only after the first step).
        """
        return self.project(self.x + self._delta(kind, keys, seed).to(self.x))

    def _delta(self, kind: Start, keys: Tensor, seed: int) -> Tensor:
        shape = tuple(self.x.shape[1:])
        if kind == "zero":
            return torch.zeros_like(self.x)
        if kind == "uniform":
            return self._uniform(keys, seed)
        direction = seeds.normal(keys, shape, seed)
        if kind == "gaussian":
            return 0.001 * direction
        return direction * self._over_norm(self._radius(keys, seed), direction)

    def _uniform(self, keys: Tensor, seed: int) -> Tensor:
        """Uniform in the ball: a direction uniform on the sphere, and the root of a uniform volume."""
        direction = self._direction(keys, seed)
        radius = self._radius(keys, seed, 1 / direction[0].numel()) if len(keys) else self._radius(keys, seed)
        return direction * self._over_norm(radius, direction)

    def _radius(self, keys: Tensor, seed: int, power: float = 1.0) -> Tensor:
        return self.eps * seeds.uniform(keys, (), seeds.derive_seed(seed, "radius")) ** power

    def _over_norm(self, radius: Tensor, direction: Tensor) -> Tensor:
        return per_image(radius / self.norm(direction).clamp_min(1e-12), direction)

    def _direction(self, keys: Tensor, seed: int) -> Tensor:
        """Of a point uniform on the sphere."""
        return seeds.normal(keys, tuple(self.x.shape[1:]), seed)

    @abstractmethod
    def norm(self, delta: Tensor) -> Tensor:
        """Of each change of an image (n, C, H, W), in the ball's norm: (n,)."""

    @abstractmethod
    def project(self, x_adv: Tensor) -> Tensor:
        """The allowed image nearest to `x_adv`."""

    def part(self, index: Tensor) -> Self:
        """Around the images at `index`."""
        return type(self)(self.x[index], self.eps)


class LinfBall(_Ball):
    """Every value within `eps` of the image's, and in [0, 1]."""

    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__(x, eps)
        self.low, self.high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)

    def _uniform(self, keys: Tensor, seed: int) -> Tensor:
        return self.eps * (2 * seeds.uniform(keys, tuple(self.x.shape[1:]), seed) - 1)

    def norm(self, delta: Tensor) -> Tensor:
        """The largest absolute value of each, (n,)."""
        return delta.flatten(1).abs().amax(dim=1)

    def ascent(self, gradient: Tensor, x_adv: Tensor) -> Tensor:
        """Its signs."""
        return gradient.sign()

    def project(self, x_adv: Tensor) -> Tensor:
        """Clipped value by value."""
        return torch.clamp(x_adv, self.low, self.high)


class L2Ball(_Ball):
    """Within `eps` of the image in Euclidean norm, and in [0, 1]."""

    def norm(self, delta: Tensor) -> Tensor:
        """Euclidean, (n,)."""
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def ascent(self, gradient: Tensor, x_adv: Tensor) -> Tensor:
        """The gradient over its norm (Madry et al. 2018)."""
        return gradient / per_image(self.norm(gradient).clamp_min(1e-12), gradient)

    def project(self, x_adv: Tensor) -> Tensor:
        """x + clip(t (x_adv - x)) for the largest t in [0, 1] that the ball allows."""
        delta = x_adv - self.x
        size, room = delta.flatten(1).double().abs(), _room(delta, self.x)
        # values reach the cube's wall one after the other; between two of them the squared norm is a + t^2 b
        wall, order = (room / size.clamp_min(1e-30)).sort(dim=1)
        clipped = room.gather(1, order).square().cumsum(dim=1)
        free = size.gather(1, order).square().flip(1).cumsum(dim=1).flip(1)
        before = torch.cat([torch.zeros_like(clipped[:, :1]), clipped[:, :-1]], dim=1)
        k = (before + wall.square() * free < self.eps**2).sum(dim=1, keepdim=True)
        last = k.clamp_max(size.shape[1] - 1)
        t = ((self.eps**2 - before.gather(1, last)).clamp_min(0) / free.gather(1, last).clamp_min(1e-60)).sqrt()
        t = torch.where(k < size.shape[1], t, torch.inf).clamp_max(1)
        moved = torch.minimum(t * size, room)
        return _placed(self.x, delta, moved, self.eps, moved.norm(dim=1))


class L1Ball(_Ball):
    """Within `eps` of the image in the sum of absolute changes, and in [0, 1]."""

    def _direction(self, keys: Tensor, seed: int) -> Tensor:
        signed = 2 * seeds.uniform(keys, tuple(self.x.shape[1:]), seed) - 1
        return -signed.sign() * torch.log1p(-signed.abs().clamp_max(1 - 2**-23))  # Laplace's distribution

    def norm(self, delta: Tensor) -> Tensor:
        """The sum of absolute values, (n,)."""
        return delta.flatten(1).abs().sum(dim=1)

    def ascent(self, gradient: Tensor, x_adv: Tensor) -> Tensor:
        """The signs of the largest values of the gradient, equal in size: a sparse step (Tramèr and Boneh 2019).

        As many values as `eps`, rounded up, of those that a wall of the cube does not hold: each moves by at most 1, so
        fewer could not use up the radius. The steepest direction would move a single one.
        """
        held = torch.where(gradient > 0, x_adv >= 1, x_adv <= 0)
        size = gradient.abs().masked_fill(held, 0).flatten(1)
        count = min(max(1, math.ceil(self.eps)), size.shape[1])
        largest, index = size.topk(count, dim=1)
        chosen = torch.zeros_like(size).scatter_(1, index, (largest > 0).to(size) / count)
        return gradient.sign() * chosen.view_as(gradient)

    def project(self, x_adv: Tensor) -> Tensor:
        """x + clip(sign(delta) max(|delta| - m, 0)) with the smallest m >= 0 that the ball allows.

        Ball and cube at once, as in APGD for L1 (Croce and Hein 2021, "Mind the box").
        """
        delta = x_adv - self.x
        size, room = delta.flatten(1).double().abs(), _room(delta, self.x)
        # as m falls, a value's share grows from m = size on, and stops at the wall; between two of them by a slope
        m, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
        change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1).gather(1, order)
        slope = change.cumsum(dim=1)
        grown = torch.cat([torch.zeros_like(m[:, :1]), (slope[:, :-1] * -m.diff(dim=1)).cumsum(dim=1)], dim=1)
        k = ((grown < self.eps).sum(dim=1, keepdim=True) - 1).clamp_min(0)
        rest = (self.eps - grown.gather(1, k)) / slope.gather(1, k).clamp_min(1)
        threshold = (m.gather(1, k) - rest).clamp_min(0)
        kept = torch.minimum((size - threshold).clamp_min(0), room)
        return _placed(self.x, delta, kept, self.eps, kept.sum(dim=1))


BALLS: dict[str, Callable[[Tensor, float], Ball]] = {"Linf": LinfBall, "L2": L2Ball, "L1": L1Ball}
"""Norm to the ball in which PGD moves."""


def _room(delta: Tensor, x: Tensor) -> Tensor:
    """How far each value may move the way it does before it leaves [0, 1]: (n, D) float64."""
    return torch.where(delta > 0, 1 - x, x).flatten(1).double()


def _placed(x: Tensor, delta: Tensor, size: Tensor, eps: float, norm: Tensor) -> Tensor:
    """x moved by `size` (n, D) in the direction of `delta`'s signs; rounding does not leave ball and cube."""
    size = size * (eps / norm.clamp_min(1e-300)).clamp_max(1)[:, None]
    return (x + delta.sign() * size.to(x).view_as(x)).clamp_(0, 1)
