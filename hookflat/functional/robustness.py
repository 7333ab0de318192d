"""Robust loss and robust error of any network (protocol of Stutz, Hein, Schiele 2021, section 1.1).

The network maps images (n, C, H, W) in [0, 1] to logits (n, K). Weights, buffers, mode and `requires_grad` flags are
left as found, also on an exception. Random starts depend on the seed and on an example's position in the set, so
results do not depend on the batch size or on the number of processes beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import AttackView
from hookflat.functional.attacks import pgd
from hookflat.functional.brackets import frozen
from hookflat.functional.data import Loader, set_of
from hookflat.functional.losses import cross_entropy
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work

PGD20X10 = Attack(restarts=10)


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
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> RobustLoss:
    """RLoss: mean over examples of the largest cross-entropy found by PGD; RErr: wrong clean or under any restart.

    `attack`, or any of its values by keyword (20 steps of 0.007, 10 restarts, in the L-infinity ball of 8/255).
    """
    with frozen(model):
        r = attacked(AttackView(model), loader, attack.but(**options), seed, work or Work())
    correct, incorrect = (mean(r.loss[chosen]) for chosen in (~r.clean_wrong, r.clean_wrong))
    return RobustLoss(mean(r.loss), mean(r.wrong), mean(r.clean_wrong), correct, incorrect, r)


def attacked(view: nn.Module, loader: Loader, attack: Attack, seed: int, work: Work) -> PerExample:
    """Attack every example of `loader` and keep, for each, the worst over restarts (the clean image where none)."""
    device = next(view.parameters()).device
    examples, once = set_of(loader, device), attack.but(restarts=1)

    def batch(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        with torch.no_grad():
            clean_loss, clean_wrong = _scores(view(x), y)
        loss, wrong = torch.full_like(clean_loss, -torch.inf) if attack.restarts else clean_loss, clean_wrong
        for restart in range(attack.restarts):
            draw = seeds.derive_seed(seed, "restart", restart)
            x_adv = pgd(view, x, y, attack=once, seed=draw, keys=keys)
            with torch.no_grad():
                loss_adv, wrong_adv = _scores(view(x_adv), y)
            loss, wrong = torch.maximum(loss, loss_adv), wrong | wrong_adv
            work.passed(len(y) * (attack.steps + 1))
        return {"clean_loss": clean_loss, "clean_wrong": clean_wrong, "loss": loss, "wrong": wrong}

    rows = [work.once(f"batch {i}", lambda b=b: batch(*b)) for i, b in enumerate(examples)]
    if not rows:  # fewer examples than processes
        none = torch.zeros(0)
        rows = [{"clean_loss": none, "clean_wrong": none.bool(), "loss": none, "wrong": none.bool()}]
    columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return PerExample(**{name: examples.gather(column) for name, column in columns.items()})


def mean(values: Tensor) -> float:
    """In double precision; NaN of nothing."""
    return values.double().mean().item()


def _scores(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return cross_entropy(logits, y), logits.argmax(dim=1) != y
