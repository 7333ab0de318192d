"""APGD, PGD that chooses its own steps, for any objective, as AutoAttack runs it.

Croce and Hein (2020), Alg. 1; in L1 Croce and Hein (2021), "Mind the box"; github.com/fra31/auto-attack.
"""

from __future__ import annotations

from typing import Unpack, cast

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view, once
from hookflat.functional.attacks import Mode, Objective, better, check_start, cross_entropy_with, gradient_at, prepared
from hookflat.functional.balls import Ball
from hookflat.functional.brackets import frozen
from hookflat.functional.broadcasting import per_image
from hookflat.functional.choices import check_choice
from hookflat.functional.threats import Attack, AttackOptions

APGD10 = Attack(steps=10, start="uniform")
RHO = 0.75
"""A step stays as long while the objective rises in more than this share of the steps between two looks."""


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    attack: Attack = APGD10,
    objective: Objective | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    keys: Tensor | None = None,
    **options: Unpack[AttackOptions],
) -> Tensor:
    """Adversarial examples (n, C, H, W) in [0, 1], at most `eps` from `x`: for each the point of largest objective.

    The steps are long at first (2 eps; in L1 eps, along few values) and carry a quarter of the step before. Where an
    example rises too rarely between two looks, its step is halved, and it goes on from its best point. The arguments
    are those of `pgd`, but for `step_size`, which plays no part; where nothing is said, 10 steps from one start,
    uniform in the ball (AutoAttack: 100, from the ball's boundary). `steps + 1` passes.
    """
    if objective is None and y is None:
        raise ValueError("apgd needs the labels y, or an objective")
    check_choice("mode", mode, Mode)
    attack = attack.but(**options)
    if attack.restarts < 1:
        raise ValueError("apgd needs restarts >= 1")
    checked = keys is None
    x, y, keys = prepared(model, x, y, keys)
    objective = objective or cross_entropy_with(cast(Tensor, y), x, checked=checked)
    check_start(attack, objective)
    ball = attack.threat.ball(x)
    best_x, best = x, torch.full((len(x),), -torch.inf, device=x.device)
    with frozen(model, train=mode == "train"):
        attacked = model if mode == "train" else attack_view(model, attack.precision)
        for restart in range(attack.restarts):
            start = ball.start(attack.start, keys, seeds.derive_seed(seed, "start", restart))
            best_x, best = better(best_x, best, *_climbed(attacked, objective, ball, x, start, attack))
    return best_x


def _climbed(
    model: nn.Module, objective: Objective, ball: Ball, x: Tensor, start: Tensor, attack: Attack
) -> tuple[Tensor, Tensor]:
    """The best point from one start, and its objective."""
    x_adv, value, gradient = gradient_at(model, objective, start)
    best_x, best, best_gradient, before = x_adv, value, gradient, x_adv
    pace = (_Sparse if attack.threat.norm == "L1" else _Halving)(ball, x, best, attack)
    for step in range(attack.steps):
        x_adv, before = pace.moved(x_adv, before, gradient, first=step == 0), x_adv
        if step + 1 == attack.steps:
            with torch.no_grad():
                return better(best_x, best, x_adv, objective(once(model), x_adv))
        last = value
        x_adv, value, gradient = gradient_at(model, objective, x_adv)
        pace.rises += value > last if step else 1  # the first step counts as a rise, as in the official code
        improved = ~(value <= best)
        best_gradient = torch.where(per_image(improved, x), gradient, best_gradient)
        best_x, best = better(best_x, best, x_adv, value)
        if pace.looks():
            back = per_image(pace.look(best_x, best), x)
            x_adv, gradient = torch.where(back, best_x, x_adv), torch.where(back, best_gradient, gradient)
    return best_x, best  # of no step


class _Pace:
    """The lengths of the steps, and when to look at them again."""

    def __init__(self, ball: Ball, x: Tensor, length: float, every: int) -> None:
        self.ball, self.x, self.every = ball, x, every
        self.length = torch.full((len(x),), length, dtype=x.dtype, device=x.device)
        self.rises = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._since = 0

    def looks(self) -> bool:
        """Whether this step is followed by a look."""
        self._since += 1
        if self._since < self.every:
            return False
        self._since = 0
        return True


class _Halving(_Pace):
    """L-infinity and L2: momentum, and steps halved where they oscillate."""

    def __init__(self, ball: Ball, x: Tensor, best: Tensor, attack: Attack) -> None:
        super().__init__(ball, x, 2 * attack.threat.eps, max(int(0.22 * attack.steps), 1))
        self._least, self._less = max(int(0.06 * attack.steps), 1), max(int(0.03 * attack.steps), 1)
        self._best, self._halved = best, torch.ones_like(best, dtype=torch.bool)

    def moved(self, x_adv: Tensor, before: Tensor, gradient: Tensor, *, first: bool) -> Tensor:
        """The next point."""
        step = self.ball.project(x_adv + per_image(self.length, x_adv) * self.ball.ascent(gradient, x_adv)) - x_adv
        share = 1.0 if first else 0.75
        return self.ball.project(x_adv + share * step + (1 - share) * (x_adv - before))

    def look(self, best_x: Tensor, best: Tensor) -> Tensor:
        """Halve steps; (n,) bool, who goes back to the best point."""
        stuck = ~self._halved & (self._best >= best)  # no better since the last look, with the same step
        halve = (self.rises <= RHO * self.every) | stuck
        self.length = torch.where(halve, self.length / 2, self.length)
        self._best, self._halved = best, halve
        self.rises = torch.zeros_like(self.rises)
        self.every = max(self.every - self._less, self._least)
        return halve


class _Sparse(_Pace):
    """L1: steps along the largest values of the gradient, as many as the best point has changed, over 1.5."""

    def __init__(self, ball: Ball, x: Tensor, best: Tensor, attack: Attack) -> None:
        super().__init__(ball, x, attack.threat.eps, max(int(0.04 * attack.steps), 1))
        self._eps, self._values = attack.threat.eps, x[0].numel() if len(x) else 1
        self._share, self._changed = torch.full_like(best, 0.2), torch.full_like(best, self._values)

    def moved(self, x_adv: Tensor, before: Tensor, gradient: Tensor, *, first: bool) -> Tensor:
        """The next point."""
        size = gradient.flatten(1).abs()
        place = ((1 - self._share) * self._values).clamp(0, self._values - 1).long()
        smallest = size.sort(dim=1).values.gather(1, place[:, None])
        sign = (gradient.flatten(1).sign() * (size >= smallest)).view_as(gradient)
        count = sign.flatten(1).abs().sum(dim=1) + 1e-10
        return self.ball.project(x_adv + per_image(self.length / count, x_adv) * sign)

    def look(self, best_x: Tensor, best: Tensor) -> Tensor:
        """Shorten or renew steps; (n,) bool, who goes back to the best point."""
        changed = ((best_x - self.x) != 0).flatten(1).sum(dim=1).to(best)
        sparser = changed / self._changed < 0.95
        self._share, self._changed = changed / self._values / 1.5, changed
        self.length = torch.where(sparser, self._eps, (self.length / 1.5).clamp_min(self._eps / 10))
        return sparser
