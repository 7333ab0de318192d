"""Robust loss, robust error and robust flatness of any network (protocol of Stutz, Hein, Schiele 2021, section 1).

The network maps images (n, C, H, W) in [0, 1] to logits (n, K). Weights, buffers, mode and `requires_grad` flags are
left as found, also on an exception. Random starts depend on the seed and on an example's position in the set, so
results do not depend on the batch size or on the number of processes beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hookflat import seeds
from hookflat.attack_view import AttackView
from hookflat.attacks import Start, check_images, pgd
from hookflat.brackets import frozen
from hookflat.data import Examples
from hookflat.losses import cross_entropy
from hookflat.neighborhood import layers, moved, sphere

Loader = Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | Examples
"""Batches (x, y), one pair of tensors (split into batches of 250), or `Examples`."""


@dataclass(frozen=True, eq=False)
class PerExample:
    """One value an example, in the order of the set, on the CPU; (N,) each.

    `clean_wrong`, `wrong`: bool, misclassified clean; misclassified clean or under any restart.
    `clean_loss`, `loss`: cross-entropy clean; the largest over the restarts.
    """

    clean_loss: Tensor
    clean_wrong: Tensor
    loss: Tensor
    wrong: Tensor


@dataclass(frozen=True, eq=False)
class RobustLoss:
    """RLoss and RErr (PGD) over all examples, misclassified ones included, and the clean error; errors in [0, 1]."""

    loss: float
    error: float
    clean_error: float
    per_example: PerExample


@dataclass(frozen=True, eq=False)
class Flatness:
    """`flatness` = mean over perturbations of RLoss(w + nu) minus RLoss(w); `standard_error` of that mean.

    `losses`: RLoss at w + nu, one for each perturbation. `reference`: RLoss(w).
    """

    flatness: float
    standard_error: float
    losses: list[float]
    reference: float


def robust_loss(
    model: nn.Module,
    loader: Loader,
    *,
    eps: float = 8 / 255,
    step_size: float = 0.007,
    steps: int = 20,
    restarts: int = 10,
    start: Start = "uniform_norm",
    seed: int = 0,
) -> RobustLoss:
    """RLoss: mean over examples of the largest cross-entropy found by PGD; RErr: wrong clean or under any restart."""
    with frozen(model):
        r = _attacked(AttackView(model), loader, eps, step_size, steps, restarts, start, seed)
    return RobustLoss(_mean(r.loss), _mean(r.wrong), _mean(r.clean_wrong), r)


def average_flatness(
    model: nn.Module,
    loader: Loader,
    *,
    xi: float = 0.5,
    samples: int = 10,
    eps: float = 8 / 255,
    step_size: float = 0.007,
    steps: int = 20,
    start: Start = "uniform_norm",
    reference: float | None = None,
    reference_restarts: int = 10,
    seed: int = 0,
) -> Flatness:
    """Average-case flatness in RLoss (Eq. 1): `samples` weight perturbations on the sphere of relative radius `xi`.

    Each perturbation is the same for all examples and gets new adversarial examples (PGD, one restart). The reference
    RLoss at w uses `reference_restarts`; pass `reference` where it is known already.
    """
    if reference is None:
        attack = {"eps": eps, "step_size": step_size, "steps": steps, "start": start}
        reference = robust_loss(model, loader, restarts=reference_restarts, seed=seed, **attack).loss
    weights = list(layers(model).values())
    losses = []
    with frozen(model):
        view = AttackView(model)
        for sample in range(samples):
            nu = sphere(weights, xi, seeds.generator(seed, "average_flatness", sample))
            draw = seeds.derive(seed, "attack at perturbed weights", sample)
            with moved(weights, nu):
                view.refresh()
                losses.append(_mean(_attacked(view, loader, eps, step_size, steps, 1, start, draw).loss))
    mean = math.fsum(losses) / samples
    spread = math.fsum((value - mean) ** 2 for value in losses) / (samples - 1) if samples > 1 else math.nan
    return Flatness(mean - reference, math.sqrt(spread / samples), losses, reference)


def _attacked(
    view: nn.Module, loader: Loader, eps: float, step_size: float, steps: int, restarts: int, start: Start, seed: int
) -> PerExample:
    """Attack every example of `loader` and keep, for each, the worst over restarts (the clean image where none)."""
    device = next(view.parameters()).device
    rows: list[list[Tensor]] = []
    for x, y, keys in _batches(loader, device):
        with torch.no_grad():
            clean_loss, clean_wrong = _scores(view(x), y)
        loss, wrong = torch.full_like(clean_loss, -torch.inf) if restarts else clean_loss, clean_wrong
        for restart in range(restarts):
            draw = seeds.derive(seed, "restart", restart)
            x_adv = pgd(view, x, y, eps=eps, step_size=step_size, steps=steps, start=start, seed=draw, keys=keys)
            with torch.no_grad():
                loss_adv, wrong_adv = _scores(view(x_adv), y)
            loss, wrong = torch.maximum(loss, loss_adv), wrong | wrong_adv
        rows.append([clean_loss, clean_wrong, loss, wrong])
    shared = isinstance(loader, Examples) and len(loader) > 0
    if not rows and not shared:
        raise ValueError("no examples to measure on: the loader gave no batch (it must be iterable more than once)")
    if not rows:  # fewer examples than processes
        none = torch.zeros(0, device=device)
        rows = [[none, none.bool(), none, none.bool()]]
    gather = loader.gather if isinstance(loader, Examples) else lambda values: values
    return PerExample(*(gather(torch.cat(column)).cpu() for column in zip(*rows, strict=True)))


def _scores(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return cross_entropy(logits.float(), y), logits.argmax(dim=1) != y


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _batches(loader: Loader, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if isinstance(loader, Examples):
        yield from loader
        return
    seen = 0
    for x, y in _pairs(loader):
        check_images(x)
        yield x.to(device), y.to(device), torch.arange(seen, seen + len(y), device=device)
        seen += len(y)


def _pairs(loader: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    match loader:
        case (Tensor() as x, Tensor() as y):
            return zip(x.split(250), y.split(250), strict=True)
        case _:
            return loader
