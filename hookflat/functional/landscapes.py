"""The robust loss along directions in weight space (protocol of Stutz, Hein, Schiele 2021, section 6.1; its Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.brackets import measuring
from hookflat.functional.choices import check_choice
from hookflat.functional.examples import Loader
from hookflat.functional.flatness import PGD10, adversarial_direction
from hookflat.functional.neighborhood import layers, moved, scaled_to, sphere
from hookflat.functional.robustness import attacked, mean
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Work

Kind = Literal["layer", "filter", "adversarial"]
LANDSCAPE_RADIUS: dict[str, float] = {"layer": 0.5, "filter": 1.0, "adversarial": 0.01}
"""The relative length of a direction, of each kind, in the paper and in Li et al. 2018."""


@dataclass(frozen=True, eq=False, repr=False)
class Landscape(Shown):
    """`at` (P, axes): points in units of the directions; `loss`, `error` (directions, P), in two dimensions (P,)."""

    at: Tensor
    loss: Tensor
    error: Tensor


def landscape(
    model: nn.Module,
    loader: Loader,
    *,
    kind: Kind = "layer",
    radius: float | None = None,
    directions: int = 10,
    points: int = 51,
    attack: Attack = PGD10,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Landscape:
    """RLoss and RErr at w + t d for `points` values of t in [-1, 1], along each of `directions` directions d.

    `kind`: "layer", Gaussian, each layer of length `radius` relative to its weights (0.5: t = 1 is the sphere of the
    flatness measure); "filter", Gaussian, each filter and each row of a linear layer of its own relative length (1),
    biases still (Li et al. 2018); "adversarial", ascent of the robust loss in weights, relative length 0.01. Every
    point is attacked anew, from the same starts; `restarts=0` measures the clean loss.
    """
    at = torch.linspace(-1, 1, points)
    work, attack = work or Work(), attack.but(**options)
    lines = []
    for index in range(directions):
        weights, d = _direction(model, loader, kind, radius, index, attack, seed)
        shifts = ([t * part for part in d] for t in at.tolist())
        lines.append(_losses(model, loader, weights, shifts, attack, seed, work.part(f"direction {index}")))
    return Landscape(at[:, None], torch.stack([f[0] for f in lines]), torch.stack([f[1] for f in lines]))


def landscape_2d(
    model: nn.Module,
    loader: Loader,
    *,
    kind: Kind = "layer",
    radius: float | None = None,
    points: int = 21,
    attack: Attack = PGD10,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Landscape:
    """The same on a grid of `points` by `points`, over the first two directions of `landscape`."""
    work, attack = work or Work(), attack.but(**options)
    (weights, one), (_, other) = (_direction(model, loader, kind, radius, index, attack, seed) for index in (0, 1))
    side = torch.linspace(-1, 1, points)
    at = torch.cartesian_prod(side, side)
    shifts = ([s * a + t * b for a, b in zip(one, other, strict=True)] for s, t in at.tolist())
    loss, error = _losses(model, loader, weights, shifts, attack, seed, work.part("plane"))
    return Landscape(at, loss, error)


def _direction(
    model: nn.Module, loader: Loader, kind: Kind, radius: float | None, index: int, attack: Attack, seed: int
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """The weights that move and their direction."""
    check_choice("kind", kind, Kind)
    xi = LANDSCAPE_RADIUS[kind] if radius is None else radius
    weights = list(layers(model, biases=kind != "filter").values())
    generator = seeds.generator(seed, "landscape", index)
    if kind == "layer":
        return weights, sphere(weights, xi, generator)
    if kind == "filter":  # a linear layer's rows are its filters
        gaussian = seeds.normals_like([w.detach() for w in weights], generator)
        by_row = scaled_to([d[..., None] for d in gaussian], [w[..., None] for w in weights], xi, filters=True)
        return weights, [d[..., 0] for d in by_row]
    once = attack.but(restarts=1)
    d = adversarial_direction(model, loader, xi=0.005, attack=once, seed=seeds.derive_seed(seed, "landscape", index))
    return weights, [xi / 0.005 * part for part in d]


def _losses(
    model: nn.Module,
    loader: Loader,
    weights: list[nn.Parameter],
    shifts: Iterable[list[Tensor]],
    attack: Attack,
    seed: int,
    work: Work,
) -> tuple[Tensor, Tensor]:
    """RLoss and RErr (P,) at w plus each of the shifts."""
    losses, errors = [], []
    with measuring(model):
        for point, nu in enumerate(shifts):
            with moved(weights, nu):
                per_example = attacked(model, loader, attack, seed, work.part(f"point {point}"))
            losses.append(mean(per_example.loss))
            errors.append(mean(per_example.wrong))
    return torch.tensor(losses), torch.tensor(errors)
