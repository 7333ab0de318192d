"""Robust loss and robust error of any network (protocol of Stutz, Hein, Schiele 2021, section 1.1).

The network maps images (n, C, H, W) in [0, 1] to logits (n, K). Weights, buffers, mode and `requires_grad` flags are
left as found, also on an exception. Random starts depend on the seed and on an example's position in the set, so
results do not depend on the batch size or on the number of processes beyond rounding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import ascent, better
from hookflat.functional.brackets import measuring
from hookflat.functional.examples import Loader, Set, check_order, evenly, set_of
from hookflat.functional.losses import cross_entropy, misclassified
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work

PGD20X10 = Attack(restarts=10)


@dataclass(frozen=True, eq=False, repr=False)
class PerExample(Shown):
    """One value an example, in the order of the set, on the CPU; (N,) each.

    `clean_wrong`, `wrong`: bool, misclassified clean; misclassified clean or at any point of any restart.
    `clean_loss`, `loss`: cross-entropy clean; the largest over the points of all restarts.
    """

    clean_loss: Tensor
    clean_wrong: Tensor
    loss: Tensor
    wrong: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class RobustLoss(Shown):
    """RLoss and RErr (PGD) over all examples, misclassified ones included, and the clean error; errors in [0, 1].

    `loss_correct`, `loss_incorrect`: RLoss over the examples that are classified correctly, incorrectly without an
    attack (the paper's Fig. 2); NaN where there are none.
    """

    loss: float
    error: float
    clean_error: float
    loss_correct: float
    loss_incorrect: float
    per_example: PerExample


def robust_loss(
    model: nn.Module,
    loader: Loader,
    *,
    attack: Attack = PGD20X10,
    seed: int = 0,
    clean: RobustLoss | None = None,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> RobustLoss:
    """RLoss: mean over examples of the largest cross-entropy found by PGD; RErr: wrong clean or at any point of PGD.

    `attack`, or any of its values by keyword (20 steps of 0.007, 10 restarts, in the L-infinity ball of 8/255). The
    search runs on the attack view; both numbers are those of `model` itself at the points found. `clean`: what
    `restarts=0` gave for the same network and examples in their order, where it is known already.
    """
    if clean is not None:
        check_order(loader)
    with measuring(model):
        r = attacked(model, loader, attack.but(**options), seed, work or Work(), clean)
    correct, incorrect = (mean(r.loss[chosen]) for chosen in (~r.clean_wrong, r.clean_wrong))
    return RobustLoss(mean(r.loss), mean(r.wrong), mean(r.clean_wrong), correct, incorrect, r)


def attacked(
    model: nn.Module, loader: Loader, attack: Attack, seed: int, work: Work, clean: RobustLoss | None = None
) -> PerExample:
    """Attack every example of `loader`, and score the worst points found; without restarts, the clean images are.

    `model` is frozen already.
    """
    examples, views = set_of(loader, model), searched_views(model, attack) if attack.restarts else []

    def batch(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        clean_loss, clean_wrong = clean_scores(model, x, y, keys, clean)
        work.passed(len(y) * (clean is None))
        loss, wrong = clean_loss, clean_wrong.clone()
        if attack.restarts:
            loss = torch.full_like(clean_loss, -torch.inf)
            among = torch.arange(len(y), device=y.device)
            for view in views:
                (worst, _), (fooling, fooled) = _worst(
                    view, x[among], y[among], keys[among], attack, seed, rows, fooling=True
                )
                here, there = scores(model, worst, y[among])
                loss[among], wrong[among] = torch.maximum(loss[among], here), wrong[among] | there
                if len(rest := ((fooled != -torch.inf) & ~wrong[among]).nonzero().flatten()):
                    wrong[among[rest]] = scores(model, fooling[rest], y[among[rest]])[1]
                work.passed(len(among) * (attack.passes + 1))
                among = (~wrong).nonzero().flatten()
                if not len(among):
                    break
        return {"clean_loss": clean_loss, "clean_wrong": clean_wrong, "loss": loss, "wrong": wrong}

    none = torch.zeros(0)
    empty = {"clean_loss": none, "clean_wrong": none.bool(), "loss": none, "wrong": none.bool()}
    return PerExample(**columns(examples, batch, work, empty))


def robust_losses(model: nn.Module, loader: Loader, attack: Attack, seed: int, work: Work) -> Tensor:
    """The largest cross-entropy of each example, (N,), and nothing else of `attacked`; `model` is frozen already."""
    examples, view = set_of(loader, model), attack_view(model, attack.precision) if attack.restarts else model

    def batch(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        worst = _worst(view, x, y, keys, attack, seed, rows)[0][0] if attack.restarts else x
        work.passed(len(y) * (attack.passes + 1))
        return {"loss": scores(model, worst, y)[0]}

    return columns(examples, batch, work, {"loss": torch.zeros(0)})["loss"]


def searched_views(model: nn.Module, attack: Attack) -> list[nn.Module]:
    """The networks that a search runs on: in low precision first, then in fp32 what that did not break."""
    if attack.precision == "fp32":
        return [attack_view(model)]
    low, full = attack_view(model, attack.precision), attack_view(model)
    return [full] if low is full else [low, full]


def columns(
    examples: Set, batch: Callable[[Tensor, Tensor, Tensor, int], Values], work: Work, empty: Values
) -> dict[str, Tensor]:
    """What `batch` says of every example, in the order of the set; each batch is a part of the work."""
    parts, rows = [], max(1, examples.batch_size)
    for i, (x, y, keys) in enumerate(examples):
        rows = max(rows, len(y))
        parts.append(work.once(f"batch {i}", lambda x=x, y=y, keys=keys, rows=rows: batch(x, y, keys, rows)))
    parts = parts or [empty]  # fewer examples than processes
    return {name: examples.gather(torch.cat([row[name] for row in parts])) for name in empty}


def _worst(
    view: nn.Module,
    x: Tensor,
    y: Tensor,
    keys: Tensor,
    attack: Attack,
    seed: int,
    rows: int,
    *,
    fooling: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Each example's point of largest loss, and the loss; `fooling`: then the same among its misclassified points.

    Over all points of all restarts, which go through the network `rows` at most at a time; -inf where there is no such
    point.
    """
    n, kinds = len(x), 2 if fooling else 1
    rows = evenly(n * attack.restarts, rows)
    worst = [(x.clone(), x.new_full((n,), -torch.inf)) for _ in range(kinds)]
    for begin in range(0, n * attack.restarts, rows):
        end = min(begin + rows, n * attack.restarts)
        parts = [  # of each restart, the examples and the rows
            (r, slice(max(begin - r * n, 0), min(end - r * n, n)), slice(max(r * n - begin, 0), (r + 1) * n - begin))
            for r in range(begin // n, (end - 1) // n + 1)
        ]
        start = torch.cat([start_of_restart(attack, x[e], keys[e], seed, r) for r, e, _ in parts])
        index = torch.arange(begin, end, device=x.device) % n
        objective, ball = Scored(y[index]), attack.threat.ball(x[index])
        here = [(start, x.new_full((end - begin,), -torch.inf))] * kinds
        for x_adv, value in ascent(view, objective, ball, start, attack):
            values = [value, value.where(objective.wrong, -torch.inf)] if fooling else [value]
            here = [better(*best, x_adv, v) for best, v in zip(here, values, strict=True)]
        for (points, largest), (best_x, best) in zip(worst, here, strict=True):
            for _, e, b in parts:
                points[e], largest[e] = better(points[e], largest[e], best_x[b], best[b])
    return worst


def start_of_restart(attack: Attack, x: Tensor, keys: Tensor, seed: int, restart: int) -> Tensor:
    """Where a restart of a measure begins, (n, C, H, W): a function of the seed, the restart and an example's key."""
    draw = seeds.derive_seed(seeds.derive_seed(seed, "restart", restart), "start", 0)
    return attack.threat.ball(x).start(attack.start, keys, draw)


class Scored:
    """Cross-entropy with `y` as an objective; `wrong` (n,) bool says where the last answer is not `y`."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.wrong = y, torch.zeros_like(y, dtype=torch.bool)

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        """(n,)."""
        logits = model(x)
        self.wrong = misclassified(logits.detach(), self.y)
        return cross_entropy(logits, self.y)


def clean_scores(
    model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, clean: RobustLoss | None
) -> tuple[Tensor, Tensor]:
    """`scores` of clean images at the positions `keys` of their set, from `clean` where it is known."""
    if clean is None:
        return scores(model, x, y)
    at, known = keys.cpu(), clean.per_example
    return known.clean_loss[at].to(y.device), known.clean_wrong[at].to(y.device)


@torch.no_grad()
def scores(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each example, and whether it is misclassified; (n,) each."""
    logits = model(x)
    return cross_entropy(logits, y), misclassified(logits, y)


def mean(values: Tensor) -> float:
    """In double precision; NaN of nothing."""
    return values.double().mean().item()


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; NaN of fewer than two, or where one is NaN."""
    known = len(values) > 1 and not any(map(math.isnan, values))
    return statistics.stdev(values) / math.sqrt(len(values)) if known else math.nan
