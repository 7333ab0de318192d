"""Projected gradient descent in the ball of a threat, on any network that takes images in [0, 1].

Definitions: protocol of Stutz, Hein, Schiele (2021), section 2; Madry et al. (2018) for the attack itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookflat.errors import UserError
from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view, once
from hookflat.functional.brackets import check_network, frozen
from hookflat.functional.broadcasting import per_image
from hookflat.functional.choices import check_choice
from hookflat.functional.examples import check_images, check_labels, check_pairs
from hookflat.functional.layers import AuxiliaryHead, device_of
from hookflat.functional.losses import cross_entropy, kl_divergence
from hookflat.functional.threats import Attack, AttackOptions, Ball

Mode = Literal["eval", "train"]

Objective = Callable[[nn.Module, Tensor], Tensor]
"""What an attack maximises: `objective(model, x_adv)` gives one value for each example, (n,).

In evaluation mode, the model that it is given may be another module that computes the same.
"""

PGD20 = Attack()
FRIENDLY = Attack(steps=10, start="uniform")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    attack: Attack = PGD20,
    objective: Objective | None = None,
    keep: Literal["best", "last"] = "best",
    momentum: float = 0.0,
    cycle_detection: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
    keys: Tensor | None = None,
    **options: Unpack[AttackOptions],
) -> Tensor:
    """Adversarial examples (n, C, H, W) in [0, 1], at most `eps` from `x`.

    `x`: (n, C, H, W) in [0, 1]; `y`: (n,) int64, needed unless `objective` is given (default: cross-entropy with `y`).
    `attack`, or any of its values by keyword (20 steps of 0.007 from one start in the L-infinity ball of 8/255).
    `keep="best"` returns, for each example, the evaluated point of largest objective among the `steps + 1` points of
    every restart, the start included; `"last"` the last iterate of the last restart. `momentum`: steps follow
    g <- momentum g + grad / ||grad||_1 (MI-FGSM's mu, Dong et al. 2018, Alg. 1). `cycle_detection`: an example that
    comes back to a point goes through the model no more, since from there on every point was seen (Doldo et al. 2025,
    arXiv 2503.19347): the same result in fewer passes where steps are many. A device waits at each step for it; it
    needs `keep="best"`, no momentum and `mode="eval"`. `mode="train"` normalises by batch statistics. `keys`: (n,)
    int64, what the random start of an example depends on besides `seed` (default: its position in the batch). The
    paper's start may lie arbitrarily near `x`; an objective divided by the distance needs `start="uniform"`. Raises
    ValueError for images outside [0, 1] and for labels that the network has no logit for, unless `keys` are given. The
    model's weights, buffers, mode and flags are left as found; in evaluation mode its attack view is attacked
    (`attack_view`), the same function up to rounding.
    """
    if objective is None and y is None:
        raise ValueError("pgd needs the labels y, or an objective")
    attack = attack.but(**options)
    check_choice("keep", keep, Literal["best", "last"])
    if attack.restarts < 1:
        raise ValueError("pgd needs restarts >= 1")
    if cycle_detection and (keep == "last" or momentum or mode == "train"):
        raise ValueError('cycle_detection needs keep="best", no momentum and mode="eval"')
    checked = keys is None
    x, y, keys = prepared(model, x, y, keys)
    objective = objective or cross_entropy_with(cast(Tensor, y), x, checked=checked)
    check_start(attack, objective)
    check_choice("mode", mode, Mode)
    x_adv = best_x = x
    ball = attack.threat.ball(x)
    best = torch.full((len(x),), -torch.inf, device=x.device)
    with frozen(model, train=mode == "train"):
        attacked = model if mode == "train" else attack_view(model, attack.precision)
        for restart in range(attack.restarts):
            start = ball.start(attack.start, keys, seeds.derive_seed(seed, "start", restart))
            if cycle_detection:
                points = ascent_until_cycle(attacked, objective, ball, start, attack)
            else:
                points = ascent(attacked, objective, ball, start, attack, momentum=momentum, score_last=keep == "best")
            for x_adv, value in points:
                best_x, best = better(best_x, best, x_adv, value)
    return best_x if keep == "best" else x_adv


def prepared(
    model: nn.Module, x: Tensor, y: Tensor | None, keys: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Images, labels and keys as attacks go through them.

    Without keys: checked (ValueError), on the device of the model, keys their positions. With keys they were looked at
    already: looking makes a device wait.
    """
    if keys is not None:
        return x.detach(), y, keys
    check_network(model)
    check_images(x, model)
    device = device_of(model, x.device)
    return x.detach().to(device), None if y is None else y.to(device), torch.arange(len(x), device=device)


def ascent(
    model: nn.Module,
    objective: Objective,
    ball: Ball,
    x_adv: Tensor,
    attack: Attack,
    *,
    momentum: float = 0.0,
    score_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The `steps + 1` points of PGD from one start, each with the objective there, (n, C, H, W) and (n,), detached.

    `model` is frozen already. The objective at the last point is NaN unless `score_last`.
    """
    velocity = torch.zeros_like(x_adv)
    for _ in range(attack.steps):
        x_adv, value, gradient = gradient_at(model, objective, x_adv)
        yield x_adv, value
        if momentum:
            gradient = velocity = momentum * velocity + F.normalize(gradient.flatten(1), p=1).view_as(gradient)
        x_adv = ball.project(x_adv + attack.step_size * ball.ascent(gradient, x_adv))
    with torch.no_grad():
        yield x_adv, objective(once(model), x_adv) if score_last else x_adv.new_full((len(x_adv),), torch.nan)


def ascent_until_cycle(
    model: nn.Module, objective: Objective, ball: Ball, x_adv: Tensor, attack: Attack
) -> Iterator[tuple[Tensor, Tensor]]:
    """`ascent` in which each example stays where it closes a circle; its objective is -inf from there on.

    Its step depends on the point alone, so that all further points were seen. Found by Brent's algorithm: a point is
    compared with that after the last power of two of steps. Ends early where all examples stay.
    """
    going = torch.ones(len(x_adv), dtype=torch.bool, device=x_adv.device)
    packed, landmark = _Packed(model, going), x_adv
    for step in range(attack.steps):
        packed.whole = once(model)
        x_adv, value, gradient = gradient_at(packed, objective, x_adv)
        yield x_adv, value.where(going, -torch.inf)
        moved = ball.project(x_adv + attack.step_size * ball.ascent(gradient, x_adv))
        going &= (moved != landmark).flatten(1).any(dim=1)
        if not going.any():
            return
        x_adv = torch.where(per_image(going, x_adv), moved, x_adv)
        if step & (step + 1) == 0:
            landmark = x_adv
    with torch.no_grad():
        yield x_adv, objective(packed, x_adv).where(going, -torch.inf)


class _Packed(nn.Module):
    """A network that only the rows `going` (n,) bool go through; for the others it repeats what it said last."""

    def __init__(self, model: nn.Module, going: Tensor) -> None:
        super().__init__()
        self.model, self.whole, self.going = model, model, going
        self._alone = not any(isinstance(m, AuxiliaryHead) for m in model.modules())  # others hear of every row
        self._last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        if self._last is None or not self._alone or len(x) != len(self.going) or self.going.all():
            logits = self.whole(x) if x.requires_grad else self.model(x)
        else:
            logits = self._last.index_put((self.going,), self.model(x[self.going]))
        self._last = logits.detach()
        return logits


def gradient_at(model: nn.Module, objective: Objective, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One pass forward and back, for attacks of one's own, which then step along `Ball.ascent(gradient, x_adv)`.

    The point (n, C, H, W), its objective (n,) and the gradient for the point (n, C, H, W), all detached; `model` is
    `frozen` already.
    """
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        value = objective(once(model), x_adv)
        if value.shape != x_adv.shape[:1]:
            raise ValueError(f"an objective gives one value for each example, {len(x_adv)}, not {tuple(value.shape)}")
        if not value.requires_grad:
            raise ValueError("the objective has no gradient for the images: does the network detach them?")
        (gradient,) = torch.autograd.grad(value.sum(), x_adv)
    return x_adv.detach(), value.detach(), gradient


def pgd_tau(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    tau: int,
    attack: Attack = FRIENDLY,
    objective: Objective | None = None,
    noise: float = 0.0,
    mode: Mode = "eval",
    seed: int = 0,
    keys: Tensor | None = None,
    **options: Unpack[AttackOptions],
) -> Tensor:
    """Friendly adversarial examples (n, C, H, W): PGD in which each example stops once it is wrong often enough.

    Before each of the `steps`, an example whose iterate is misclassified stops if it has used up `tau`, and otherwise
    uses up one of it. Returned is where each stopped, or its last iterate (Zhang et al. 2020, Alg. 1, and its official
    repository). `noise`: standard deviation of a Gaussian added to each step. The other arguments are those of `pgd`;
    there is one start, uniform in the ball where nothing is said, and 10 steps.
    """
    checked = keys is None
    check_choice("mode", mode, Mode)
    x, labels, keys = prepared(model, x, y, keys)
    y, attack = cast(Tensor, labels), attack.but(**options)
    objective = objective or cross_entropy_with(y, x, checked=checked)
    check_start(attack, objective)
    ball = attack.threat.ball(x)
    x_adv = ball.start(attack.start, keys, seeds.derive_seed(seed, "start", 0))
    left = torch.full((len(x),), tau, device=x.device)
    moving = torch.ones_like(y, dtype=torch.bool)
    with frozen(model, train=mode == "train"), torch.enable_grad():
        attacked = model if mode == "train" else attack_view(model, attack.precision)
        for step in range(attack.steps):
            observed = _Observed(once(attacked))
            x_adv.requires_grad_()
            value = objective(observed, x_adv)
            (gradient,) = torch.autograd.grad(value.sum(), x_adv)
            logits = observed.logits_of(x_adv)
            if checked and step == 0:
                check_labels(y, logits.shape[1])
            wrong = logits.argmax(dim=1) != y
            moving = moving & ~(wrong & (left == 0))
            left = left - (wrong & moving).long()
            change = attack.step_size * ball.ascent(gradient, x_adv.detach())
            if noise:
                change = change + noise * seeds.normal(keys, tuple(x.shape[1:]), seeds.derive_seed(seed, "noise", step))
            mask = per_image(moving, x)
            x_adv = torch.where(mask, ball.project(x_adv.detach() + change), x_adv.detach())
    return x_adv.detach()


class _Observed(nn.Module):
    """A network that remembers what it said of its last input, so that an attack need not ask twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self._last = (x, logits.detach())
        return logits

    def logits_of(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            with torch.no_grad():
                return self.model(x)
        return self._last[1]


def clean_logits(x: Tensor) -> Callable[[nn.Module], Tensor]:
    """What the attacked network says of the clean images `x`, asked once and detached: for objectives."""
    known: list[Tensor] = []

    def of(model: nn.Module) -> Tensor:
        if not known:
            with torch.no_grad():
                known.append(model(x))
        return known[0]

    return of


def divergence_from_clean(x: Tensor, divergence: Callable[[Tensor, Tensor], Tensor] = kl_divergence) -> Objective:
    """TRADES's: KL(p(x) || p(x_adv)), p(x) the attacked network's own clean prediction, detached.

    `divergence`: another one, of each example's clean and adversarial logits, each (n, K), to (n,).
    It is smallest at `x`, and without gradient: attacks raise UserError where they would start there.
    """
    return _Divergence(clean_logits(x), divergence)


class _Divergence:
    """A class, so that attacks know it."""

    def __init__(self, clean: Callable[[nn.Module], Tensor], divergence: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.clean, self.divergence = clean, divergence

    def __call__(self, model: nn.Module, x_adv: Tensor) -> Tensor:
        return self.divergence(self.clean(model), model(x_adv))


def check_start(attack: Attack, objective: Objective) -> None:
    """Raises UserError for an attack that would start where its objective has no gradient, and mostly stay there."""
    if attack.start == "zero" and attack.steps and isinstance(objective, _Divergence):
        raise UserError(
            'attack.start = "zero": what this loss lets attacks maximise, the divergence from the clean prediction, '
            'has no gradient at the image itself; take another start, such as "uniform"'
        )


def cross_entropy_with(y: Tensor, x: Tensor, *, checked: bool) -> Objective:
    """Cross-entropy with the labels of `x`; `checked`: labels that the network has no logit for raise ValueError."""
    if checked:
        check_pairs(x, y)
    checked = checked and len(y) > 0 and y.dim() == 1  # there may be distributions over classes
    low, high = (y.min().item(), y.max().item()) if checked else (0, 0)
    y = y if y.is_floating_point() else y.long()

    def objective(model: nn.Module, x_adv: Tensor) -> Tensor:
        logits = model(x_adv)
        if (checked and not (low >= 0 and high < logits.shape[1])) or (y.is_floating_point() and checked):
            check_labels(y, logits.shape[1])
        return cross_entropy(logits, y)

    return objective


def better(best_x: Tensor, best: Tensor, x_adv: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of two points for each example, the one of larger value, and the value."""
    improved = ~(value <= best)  # a NaN wins: it must not hide behind the clean image
    mask = per_image(improved, x_adv)
    return torch.where(mask, x_adv, best_x), torch.where(improved, value, best)
