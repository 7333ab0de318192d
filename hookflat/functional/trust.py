"""Signs that RErr is too low: what a network does to attacks, and what stronger or other attacks still break.

The checks of the AutoAttack package (its `checks.py` and flags_doc.md, which RobustBench asks for), and those of
Athalye, Carlini, Wagner 2018 (arXiv 1802.00420) and Carlini et al. 2019 (arXiv 1902.06705) for masked gradients.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import PGD20, pgd
from hookflat.functional.brackets import frozen, measuring
from hookflat.functional.examples import Loader, repeatable, set_of
from hookflat.functional.input_space import margin
from hookflat.functional.losses import cross_entropy, misclassified
from hookflat.functional.robust_error import robust_error
from hookflat.functional.robustness import columns, robust_loss
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work

TRUST_FLAGS = {
    "randomised": "randomised: the same images get other logits",
    "probabilities": "gives probabilities, not logits",
    "dynamic": "computes gradients while it classifies",
    "zero_gradients": "gradients that are exactly zero",
    "radius": "larger radii break too little",
    "single_step": "one step breaks more than many",
    "steps": "four times the steps break many more",
    "inconsistent": "four times the steps break fewer: its answers change",
    "square": "Square breaks what gradients do not",
    "transfer": "a sibling's adversarial examples break more",
}
"""What may be raised, in words."""


@dataclass(frozen=True, eq=False, repr=False)
class Trust(Shown):
    """`raised`: of each flag that was looked at (names of `TRUST_FLAGS`), whether it was raised.

    Shares of all examples: `error`, RErr by PGD; `error_steps`, with four times the steps; `error_single_step`, by one
    step of eps; `error_radius`, at 2 and 4 eps; `zero_gradients`, an exactly zero gradient of the cross-entropy or of
    the margin; `square`, broken by Square alone; `error_transfer`, RErr by the sibling's adversarial examples. NaN
    where it was not looked at.
    """

    error: float
    error_steps: float
    error_single_step: float
    error_radius: tuple[float, float]
    zero_gradients: float
    square: float = math.nan
    error_transfer: float = math.nan
    raised: dict[str, bool] = field(default_factory=dict)


def trust(
    model: nn.Module,
    loader: Loader,
    *,
    attack: Attack = PGD20,
    queries: int = 500,
    sibling: nn.Module | None = None,
    tolerance: float = 0.02,
    surviving: float = 0.5,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Trust:
    """Whether there are signs that RErr by `attack` (PGD with cross-entropy) is too low.

    `queries`: of Square, 0 leaves it out. `sibling`: a network trained alike, whose adversarial examples should not
    break more than the network's own. `tolerance`: a share of examples that is no sign (the package's for Square is
    0.002, of many examples). `surviving`: of the examples that are right at eps, the share that may be at four
    times the radius; no radius may break less than a smaller one. Randomised networks draw from the global generators.

    Four times the steps go through the points of the fewer steps first: a network that they break less has changed its
    answers, by chance or by what it was asked before.
    """
    work, attack = work or Work(), attack.but(**options)
    eps, step = attack.threat.eps, attack.step_size
    loader = repeatable(loader)

    def wrong(other: Attack, name: str) -> Tensor:
        return robust_error(model, loader, attack=other, seed=seed, clean=clean, work=work.part(name)).wrong

    def rate(flags: Tensor) -> float:
        return flags.double().mean().item()

    with measuring(model):
        examples = set_of(loader, model)
        first = next(iter(examples), None)  # a process may have none
        seen = examples.sum(torch.tensor(_looks(model, *first[:2]) if first else [0.0] * 3)) > 0
        raised = dict(zip(("randomised", "probabilities", "dynamic"), map(bool, seen), strict=True))
        zero = columns(examples, lambda *batch: _zero(model, attack, seed, *batch), work.part("zero"), _NONE)["zero"]
    clean = robust_loss(model, loader, restarts=0, work=work.part("clean"))
    plain = wrong(attack, "plain")
    error, stepped = rate(plain), rate(wrong(attack.but(steps=4 * attack.steps), "steps"))
    single = rate(wrong(attack.but(steps=1, step_size=eps, start="zero", restarts=1), "single step"))
    radii = tuple(rate(wrong(attack.but(eps=k * eps, step_size=k * step), f"radius {k}")) for k in (2, 4))
    survive = 1 - radii[1] > surviving * (1 - error) + tolerance
    falls = radii[0] < error - tolerance or radii[1] < radii[0] - tolerance
    raised |= {"zero_gradients": rate(zero) > tolerance, "radius": survive or falls}
    raised |= {"single_step": single > error + tolerance, "steps": stepped > error + tolerance}
    raised["inconsistent"] = stepped < error - tolerance
    more: dict[str, Any] = {}
    if queries:
        more["square"] = rate(_square(model, loader, attack, queries, seed, plain, work.part("square")))
        raised["square"] = more["square"] > tolerance
    if sibling is not None:
        more["error_transfer"] = rate(_transfer(model, sibling, loader, attack, seed, work.part("transfer")))
        raised["transfer"] = more["error_transfer"] > error + tolerance
    return Trust(error, stepped, single, (radii[0], radii[1]), rate(zero), raised=raised, **more)


def _looks(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Whether it is randomised, gives probabilities, is dynamic: 1 or 0 each."""
    return [float(flag) for flag in (randomised(model, x, y), probabilities(model, x), dynamic(model, x))]


@torch.no_grad()
def randomised(model: nn.Module, x: Tensor, y: Tensor, *, calls: int = 5, alpha: float = 1e-4) -> bool:
    """Whether passes disagree: in the number of correct answers, or by more than alpha in logits of norm one."""
    logits = [model(x).double() for _ in range(calls)]
    correct = {int((z.argmax(dim=1) == y).sum()) for z in logits}
    units = torch.stack([z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in logits])
    apart = max(float((units - unit).norm(dim=2).max()) for unit in units)
    return len(correct) > 1 or apart > alpha


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor, *, alpha: float = 1e-5) -> bool:
    """Whether the outputs are in [0, 1] and add up to one."""
    p = model(x).double()
    return bool(p.min() > -alpha and p.max() < 1 + alpha and ((p.sum(dim=1) - 1).abs() < alpha).all())


def dynamic(model: nn.Module, x: Tensor) -> bool:
    """Whether gradients are computed inside the network's forward pass."""
    with _autograd_heard() as calls:
        model(x[:1])
    return bool(calls)


@contextmanager
def _autograd_heard() -> Generator[list[str]]:
    """The names of torch's functions for gradients that are called inside."""
    calls: list[str] = []

    def hear(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__") == "torch.autograd":
            calls.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(hear)
    try:
        yield calls
    finally:
        sys.setprofile(before)


_NONE = {"zero": torch.zeros(0, dtype=torch.bool)}


def _zero(model: nn.Module, attack: Attack, seed: int, x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
    """Whether the gradient of the cross-entropy or of the margin is zero where the attack starts."""
    start = attack.threat.ball(x).start(attack.start, keys, seeds.derive_seed(seed, "start", 0))
    zero = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for objective in (cross_entropy, margin):
        here = start.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(model(here), y).sum()
            gradient = torch.autograd.grad(value, here, materialize_grads=True)[0] if value.requires_grad else here * 0
        zero |= (gradient == 0).flatten(1).all(dim=1)
    return {"zero": zero}


def _square(
    model: nn.Module, loader: Loader, attack: Attack, queries: int, seed: int, wrong: Tensor, work: Work
) -> Tensor:
    """(N,) which examples Square breaks of those that are not `wrong` (N,) already; through the package."""
    from pyautoattack.square import SquareAttack

    def batch(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        broken = torch.zeros(len(y), dtype=torch.bool, device=x.device)
        if len(left := (~wrong.to(keys.device)[keys]).nonzero().flatten()):
            eps, norm = attack.threat.eps, attack.threat.norm
            square = SquareAttack(view, norm, queries, eps, seed=seed, device=x.device)
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.no_grad():
                x_adv = square.perturb(x[left], y[left])
                broken[left] = misclassified(model(x_adv), y[left])
        work.passed(len(left) * queries)
        return {"broken": broken}

    with measuring(model), torch.no_grad():
        view = attack_view(model)
        examples = set_of(loader, model)
        return columns(examples, batch, work, {"broken": torch.zeros(0, dtype=torch.bool)})["broken"]


def _transfer(model: nn.Module, sibling: nn.Module, loader: Loader, attack: Attack, seed: int, work: Work) -> Tensor:
    """(N,) which examples are wrong, clean or at the sibling's adversarial examples."""

    def batch(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        x_adv = pgd(attack_view(sibling, attack.precision), x, y, attack=attack, seed=seed, keys=keys)
        work.passed(len(y) * (attack.passes + 2))
        with torch.no_grad():
            return {"wrong": misclassified(model(x), y) | misclassified(model(x_adv), y)}

    with measuring(model), frozen(sibling):
        examples = set_of(loader, model)
        return columns(examples, batch, work, {"wrong": torch.zeros(0, dtype=torch.bool)})["wrong"]
