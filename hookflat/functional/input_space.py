"""Measures in input space: margins and confidence, input gradients, local Lipschitz constant, boundary thickness.

Those that Kim, Park, Choi, Lee 2023 ("Fantastic Robustness Measures", NeurIPS) compare for robust generalisation, each
by its own source. Their code (of github.com/Harry24k) has the same margins, local constant and share of the segment;
for the thickness it climbs in the threat's own radius, and away from the drawn class. Attacks run on the attack view,
numbers are those of the network. It is left as found; results do not depend on batch size or processes beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import PGD20, Objective, pgd
from hookflat.functional.brackets import measuring
from hookflat.functional.choices import check_choice
from hookflat.functional.curvature import attack_for
from hookflat.functional.examples import Loader, set_of
from hookflat.functional.losses import cross_entropy, kl_divergence, misclassified
from hookflat.functional.robustness import columns
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions, Threat
from hookflat.functional.work import Values, Work

ORDERS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
Top = Literal["L1", "KL"]
LIPSCHITZ = Attack(steps=10, start="uniform")


@dataclass(frozen=True, eq=False, repr=False)
class Margins(Shown):
    """One value an example, in the order of the set, on the CPU; (N,) each.

    `logit`, `probability`: that of the true class minus the largest other; `confidence`: the largest probability;
    `wrong`: bool.
    """

    logit: Tensor
    probability: Tensor
    confidence: Tensor
    wrong: Tensor


def margins(
    model: nn.Module,
    loader: Loader,
    *,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Margins:
    """Margins and confidence at the images, or (`robust`) at the adversarial examples of PGD.

    The logit margin f_y - max f_k of Jiang et al. 2019 and 2020, and its like in probabilities.
    """
    attack = attack_for(robust, attack, options)

    def measured(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        with torch.no_grad():
            logits = model(_attacked(model, x, y, keys, attack, seed)).double()
        p = logits.softmax(dim=1)
        return {
            "logit": margin(logits, y),
            "probability": margin(p, y),
            "confidence": p.amax(dim=1),
            "wrong": misclassified(logits, y),
        }

    return Margins(**_per_example(model, loader, measured, [f.name for f in fields(Margins)], _passes(attack), work))


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """(n,) the score of the true class minus the largest other."""
    others = scores.scatter(1, y[:, None], -torch.inf)
    return scores.gather(1, y[:, None])[:, 0] - others.amax(dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class InputGradients(Shown):
    """Norms of each example's gradient by its pixels, (N,) each: `l1` (eps times it is the first-order rise), `l2`."""

    l1: Tensor
    l2: Tensor


def input_gradients(
    model: nn.Module,
    loader: Loader,
    *,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> InputGradients:
    """Norms of the gradient of each example's cross-entropy by its pixels, at the images or (`robust`) at PGD's."""
    attack = attack_for(robust, attack, options)

    def measured(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        here = _attacked(model, x, y, keys, attack, seed).detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(cross_entropy(model(here), y).sum(), here)
        flat = gradient.flatten(1).double()
        return {"l1": flat.abs().sum(dim=1), "l2": flat.norm(dim=1)}

    return InputGradients(**_per_example(model, loader, measured, ["l1", "l2"], _passes(attack), work))


def local_lipschitz(
    model: nn.Module,
    loader: Loader,
    *,
    top: Top = "L1",
    attack: Attack = LIPSCHITZ,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Tensor:
    """(N,) lower bounds of each example's max d(f(x), f(x')) / ||x - x'|| in the threat's ball and norm.

    d is the L1 distance of logits, or ("KL") the divergence KL(p(x) || p(x')) of softmax outputs (Yang et al. 2020,
    "A closer look at accuracy vs. robustness", arXiv 2003.02460; github.com/yangarbiter/robust-local-lipschitz). That
    code negates the ratio before it steps along the gradient, and so walks to a smaller one: its constants lie far
    below this maximum. Nor is the distance differentiated here (there it is, which pulls its largest pixel back in);
    the start is uniform in the ball (there: N(0, 0.001^2), where rounding is a good part of the KL), steps are those of
    the attack (there: 0.003), and the best iterate counts (there: the last).
    """
    attack = attack.but(**options)
    check_choice("top", top, Top)

    def measured(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        with torch.no_grad():
            objective = _stretch(x, model(x), top, ORDERS[attack.threat.norm])
            view = attack_view(model, attack.precision)
            x_adv = pgd(view, x, attack=attack, objective=objective, seed=seed, keys=keys)
            return {"constant": objective(model, x_adv).double()}

    return _per_example(model, loader, measured, ["constant"], _passes(attack) + 1, work)["constant"]


def _stretch(x: Tensor, logits: Tensor, top: str, order: float) -> Objective:
    def objective(model: nn.Module, x_adv: Tensor) -> Tensor:
        distance = torch.linalg.vector_norm((x_adv.detach() - x).flatten(1), ord=order, dim=1)
        moved = kl_divergence(logits, model(x_adv)) if top == "KL" else (model(x_adv) - logits).abs().sum(dim=1)
        return moved / distance.clamp_min(1e-12)

    return objective


def boundary_thickness(
    model: nn.Module,
    loader: Loader,
    *,
    radius: float = 1.0,
    step_size: float = 0.2,
    steps: int = 20,
    alpha: float = 0.0,
    beta: float = 0.75,
    points: int = 128,
    seed: int = 0,
    work: Work | None = None,
) -> Tensor:
    """(N,) the length of each segment from x to a targeted adversarial example on which alpha < g < beta.

    g = p_i - p_j, with i the class predicted at x and j a random class other than the label; the adversarial example is
    PGD's towards j in the L2 ball of `radius`, from x, and the segment is cut into `points` (Yang et al. 2020,
    "Boundary thickness and robustness in learning models", arXiv 2007.05086; github.com/nsfzyzz/boundary_thickness,
    whose defaults these are, for 32 x 32 pixels). Lengths are of pixels in [0, 1]; that code's, of normalised images,
    are about five times as long.
    """

    attack = Attack(Threat(radius, "L2"), step_size, steps, start="zero")

    def measured(x: Tensor, y: Tensor, keys: Tensor) -> Values:
        with torch.no_grad():
            logits = model(x)
            i, classes = logits.argmax(dim=1), logits.shape[1]
            shift = 1 + (seeds.uniform(keys, (), seeds.derive_seed(seed, "target")) * (classes - 1)).long()
            j = (y + shift.clamp_max(classes - 1)) % classes
            closer: Objective = lambda net, x_adv: -cross_entropy(net(x_adv), j)
            x_adv = pgd(attack_view(model), x, attack=attack, objective=closer, keep="last", keys=keys)
            inside = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for t in torch.linspace(0, 1, points).tolist():
                p = model(t * x + (1 - t) * x_adv).softmax(dim=1)
                g = (p.gather(1, i[:, None]) - p.gather(1, j[:, None]))[:, 0]
                inside += ((alpha < g) & (g < beta)).double()
            return {"thickness": (x - x_adv).flatten(1).double().norm(dim=1) * inside / points}

    return _per_example(model, loader, measured, ["thickness"], 1 + steps + points, work)["thickness"]


def _attacked(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, attack: Attack, seed: int) -> Tensor:
    if not attack.restarts:
        return x
    return pgd(attack_view(model, attack.precision), x, y, attack=attack, seed=seed, keys=keys)


def _passes(attack: Attack) -> int:
    return attack.passes + 1


def _per_example(
    model: nn.Module,
    loader: Loader,
    measured: Callable[[Tensor, Tensor, Tensor], Values],
    names: Sequence[str],
    passes: int,
    work: Work | None,
) -> Values:
    """What `measured` says of every example under `names`, in the order of the set."""
    work = work or Work()

    def batch(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        values = measured(x, y, keys)
        work.passed(len(y) * passes)
        return values

    with measuring(model):
        return columns(set_of(loader, model), batch, work, {name: torch.zeros(0) for name in names})
