"""Robust loss and robust error of any network (protocol of Stutz, Hein, Schiele 2021, section 1.1).

The network maps images (n, C, H, W) in [0, 1] to logits (n, K). Weights, buffers, mode and `requires_grad` flags are
left as found, also on an exception. Random starts depend on the seed and on an example's position in the set, so
results do not depend on the batch size or on the number of processes beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import AttackView
from hookflat.functional.attacks import Start, pgd
from hookflat.functional.brackets import frozen
from hookflat.functional.data import Loader, set_of
from hookflat.functional.losses import cross_entropy
from hookflat.functional.work import Values, Work


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
    eps: float = 8 / 255,
    step_size: float = 0.007,
    steps: int = 20,
    restarts: int = 10,
    start: Start = "uniform_norm",
    seed: int = 0,
    work: Work | None = None,
) -> RobustLoss:
    """RLoss: mean over examples of the largest cross-entropy found by PGD; RErr: wrong clean or under any restart."""
    with frozen(model):
        r = attacked(AttackView(model), loader, eps, step_size, steps, restarts, start, seed, work or Work())
    correct, incorrect = (mean(r.loss[chosen]) for chosen in (~r.clean_wrong, r.clean_wrong))
    return RobustLoss(mean(r.loss), mean(r.wrong), mean(r.clean_wrong), correct, incorrect, r)


def attacked(
    view: nn.Module,
    loader: Loader,
    eps: float,
    step_size: float,
    steps: int,
    restarts: int,
    start: Start,
    seed: int,
    work: Work,
) -> PerExample:
    """Attack every example of `loader` and keep, for each, the worst over restarts (the clean image where none)."""
    device = next(view.parameters()).device
    examples = set_of(loader, device)

    def batch(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        with torch.no_grad():
            clean_loss, clean_wrong = _scores(view(x), y)
        loss, wrong = torch.full_like(clean_loss, -torch.inf) if restarts else clean_loss, clean_wrong
        for restart in range(restarts):
            draw = seeds.derive(seed, "restart", restart)
            x_adv = pgd(view, x, y, eps=eps, step_size=step_size, steps=steps, start=start, seed=draw, keys=keys)
            with torch.no_grad():
                loss_adv, wrong_adv = _scores(view(x_adv), y)
            loss, wrong = torch.maximum(loss, loss_adv), wrong | wrong_adv
            work.passed(len(y) * (steps + 1))
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
