"""Adaptive sharpness, average-case and worst-case, of the clean and of the robust loss.

Andriushchenko, Croce, Müller, Hein, Flammarion 2023, "A Modern Look at the Relationship between Sharpness and
Generalization" (arXiv 2302.07011), and its code, github.com/tml-epfl/sharpness-vs-generalization. Weights move by
delta = c u, element by element, with c = |w| (adaptive) or c = 1 and ||u|| <= rho over all weights at once. As in that
code, every trainable parameter moves, normalisation layers too. The network is left as found; results do not depend on
batch size or processes beyond rounding.
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import PGD20, pgd
from hookflat.functional.brackets import differentiable, measuring
from hookflat.functional.choices import check_choice, check_count
from hookflat.functional.curvature import Sharpness, attack_for
from hookflat.functional.examples import Loader, set_of
from hookflat.functional.flatness import Flatness, Held
from hookflat.functional.layers import AuxiliaryHead, NormalizedLogits, RecenteredBatchNorm2d
from hookflat.functional.losses import cross_entropy
from hookflat.functional.neighborhood import layers, moved
from hookflat.functional.robustness import mean, robust_losses, standard_error
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work

WeightNorm = Literal["L2", "Linf"]


def average_sharpness(
    model: nn.Module,
    loader: Loader,
    *,
    rho: float = 0.1,
    weight_norm: WeightNorm = "L2",
    adaptive: bool = True,
    samples: int = 20,
    normalize_logits: bool = False,
    robust: bool = True,
    attack: Attack = PGD20,
    reference: float | None = None,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Flatness:
    """Average-case sharpness: the mean of L(w + c u) - L(w) over random u (the paper's Eq. 1, `avg_l2`, `avg_linf`).

    u is Gaussian of deviation `rho` ("L2"; its norm is about rho sqrt(parameters)), or uniform in [-rho, rho] ("Linf").
    `normalize_logits`: of the network that divides its centred logits by their norm. The robust loss is attacked anew
    at every sample, from the same starts. `reference`: L(w), where it is known already. Raises ValueError for no
    samples.
    """
    check_choice("weight_norm", weight_norm, WeightNorm)
    check_count("samples", samples)
    work, attack = work or Work(), attack_for(robust, attack, options)
    weights, scales = _moving(model, adaptive)
    net = NormalizedLogits(model) if normalize_logits else model
    losses = []
    with measuring(net):
        if reference is None:
            reference = mean(robust_losses(net, loader, attack, seed, work.part("reference")))
        for sample in range(samples):
            u = _random(weights, weight_norm, seed, sample)
            with moved(weights, [rho * c * part for c, part in zip(scales, u, strict=True)]):
                losses.append(mean(robust_losses(net, loader, attack, seed, work.part(f"sample {sample}"))))
    return Flatness(math.fsum(losses) / samples - reference, standard_error(losses), losses, reference)


def worst_sharpness(
    model: nn.Module,
    loader: Loader,
    *,
    rho: float = 0.002,
    weight_norm: WeightNorm = "Linf",
    adaptive: bool = True,
    iterations: int = 20,
    batch_size: int = 128,
    normalize_logits: bool = False,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Sharpness:
    """Worst-case m-sharpness: the largest L(w + c u) - L(w) with ||u|| <= `rho`, for every m = `batch_size` examples.

    The mean over batches in order (the paper's Eq. 1, `m_apgd_l2`, `m_apgd_linf`). The search is the authors' form of
    APGD (Croce and Hein 2020) with `iterations` steps from u = 0: first step 2 rho, halved at its checkpoints; an
    iterate is 0.75 of the projected point and 0.25 of the iterate before the last (APGD itself carries on a quarter of
    the last step). For the robust loss inputs ascend with the weights from the adversarial examples of w, and are
    attacked anew at the weights found.

    Unlike the authors' search in L2, which follows |w| g and projects by Euclid, this one climbs and projects in u, so
    that the number is as invariant to rescaling as its definition. And where it halves the step it goes on from the
    best point, as APGD does; theirs takes one gradient there and goes on from where it was.
    """
    check_choice("weight_norm", weight_norm, WeightNorm)
    work, attack = work or Work(), attack_for(robust, attack, options)
    weights, scales = _moving(model, adaptive)
    net = NormalizedLogits(model) if normalize_logits else model
    before = after = 0.0
    with measuring(net):
        held = Held(set_of(loader, net), batch_size)
        for batch in held.batches():
            ascent = _Ascent(net, weights, scales, weight_norm, held, batch, attack, seed, work)
            losses = work.once(f"batch {batch}", lambda a=ascent: a.result(rho, iterations), together=held.set)
            before, after = before + losses["before"].item(), after + losses["after"].item()
    return Sharpness((after - before) / held.total, before / held.total)


def _moving(model: nn.Module, adaptive: bool) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Every trainable parameter but those of auxiliary heads, and its c.

    Raises ValueError as `layers` does.
    """
    layers(model)
    heads = {p for m in model.modules() if isinstance(m, AuxiliaryHead) for p in m.head.parameters()}
    weights = [p for p in model.parameters() if p.requires_grad and p not in heads]
    if not adaptive:
        return weights, [torch.ones_like(w) for w in weights]
    centred = {m.weight: m.scale for m in model.modules() if isinstance(m, RecenteredBatchNorm2d)}
    return weights, [centred.get(w, w).detach().abs() for w in weights]


def _random(weights: list[nn.Parameter], weight_norm: WeightNorm, seed: int, sample: int) -> list[Tensor]:
    if weight_norm == "L2":
        generator = seeds.generator(seed, "average_sharpness", sample)
        return seeds.normals_like([w.detach() for w in weights], generator)
    draws = [
        seeds.uniform(torch.tensor([i], device=w.device), tuple(w.shape), seeds.derive_seed(seed, "uniform", sample))
        for i, w in enumerate(weights)
    ]
    return [(2 * draw[0] - 1).to(w) for draw, w in zip(draws, weights, strict=True)]


class _Ascent:
    """APGD of the weights for one batch, in the coordinates u; without a wait for the device."""

    def __init__(
        self,
        net: nn.Module,
        weights: list[nn.Parameter],
        scales: list[Tensor],
        weight_norm: WeightNorm,
        held: Held,
        batch: int,
        attack: Attack,
        seed: int,
        work: Work,
    ) -> None:
        self.net, self.weights, self.scales, self.weight_norm, self.set = net, weights, scales, weight_norm, held.set
        self.attack, self.seed, self.work = attack, seed, work
        self.pieces = [(held.x[i], held.y[i], held.keys[i]) for i in held.members(batch)]

    def result(self, rho: float, iterations: int) -> Values:
        """The batch's summed loss `before`, and the largest found, `after`."""
        x_adv = self.adversarial()
        before = self.loss(x_adv)
        u = self.highest(x_adv, rho, iterations)
        with moved(self.weights, self.delta(u)):
            after = self.loss(self.adversarial())
        return {"before": before, "after": torch.maximum(before, after)}

    def highest(self, x_adv: list[Tensor], rho: float, iterations: int) -> list[Tensor]:
        """The u of largest loss; `x_adv` move along, in place."""
        u = previous = best_u = [torch.zeros_like(w) for w in self.weights]
        step = torch.full((), 2.0 * rho, dtype=torch.float64, device=u[0].device)
        best, improved = torch.full_like(step, -torch.inf), torch.zeros_like(step)
        best_then, halved_then, last = best, torch.ones((), dtype=torch.bool, device=step.device), 0
        for iteration in range(iterations + 1):
            loss, gradients = self.climb(u, x_adv, last=iteration == iterations)
            better = loss > best
            improved = improved + (better if iteration else 0)
            best, best_u = torch.where(better, loss, best), _where(better, u, best_u)
            if iteration == iterations:
                break
            if iteration in checkpoints(iterations):
                stuck = ~halved_then & (best == best_then)
                halve = (improved < 0.75 * (iteration - last)) | stuck
                step = torch.where(halve, step / 2, step)
                u, previous = _where(halve, best_u, u), _where(halve, best_u, previous)
                best_then, halved_then, last, improved = best, halve, iteration, torch.zeros_like(improved)
            climbed = [a + step.to(a) * d for a, d in zip(u, self.steepest(gradients), strict=True)]
            z = self.project(climbed, rho)
            u, previous = [0.75 * a + 0.25 * b for a, b in zip(z, previous, strict=True)], u
        return best_u

    def climb(self, u: list[Tensor], x_adv: list[Tensor], *, last: bool) -> tuple[Tensor, list[Tensor]]:
        """The summed loss at u and its gradients by u; moves the inputs by a step of their attack."""
        if last:
            with moved(self.weights, self.delta(u)):
                return self.loss(x_adv), []
        moving = self.attack.restarts > 0
        total = torch.zeros((), dtype=torch.float64, device=u[0].device)
        summed = [torch.zeros_like(w) for w in self.weights]
        with moved(self.weights, self.delta(u)), differentiable(self.weights):
            for i, (x, y, _) in enumerate(self.pieces):
                here = x_adv[i].detach().requires_grad_(moving)
                with torch.enable_grad():
                    loss = cross_entropy(self.net(here), y).sum()
                asked = [*self.weights, here] if moving else self.weights
                of_batch = list(torch.autograd.grad(loss, asked, materialize_grads=True))
                if moving:
                    ball = self.attack.threat.ball(x)
                    here = here.detach()
                    x_adv[i] = ball.project(here + self.attack.step_size * ball.ascent(of_batch.pop(), here))
                torch._foreach_add_(summed, of_batch)
                total += loss.detach()
                self.work.passed(len(y))
        gradients = [self.set.sum(g) * c for g, c in zip(summed, self.scales, strict=True)]
        return self.set.sum(total), gradients

    def steepest(self, gradients: list[Tensor]) -> list[Tensor]:
        """The direction of norm one in which the loss rises most steeply."""
        if self.weight_norm == "Linf":
            return [g.sign() for g in gradients]
        norm = torch.nn.utils.get_total_norm(gradients).clamp_min(1e-12)
        return [g / norm for g in gradients]

    def project(self, u: list[Tensor], rho: float) -> list[Tensor]:
        """The nearest u of norm `rho` at most."""
        if self.weight_norm == "Linf":
            return [a.clamp(-rho, rho) for a in u]
        factor = (rho / torch.nn.utils.get_total_norm(u).clamp_min(1e-12)).clamp_max(1)
        return [factor * a for a in u]

    def delta(self, u: list[Tensor]) -> list[Tensor]:
        """Of the weights."""
        return [c * a for c, a in zip(self.scales, u, strict=True)]

    def adversarial(self) -> list[Tensor]:
        """Adversarial examples at the weights as they are; the images themselves for the clean loss."""
        if not self.attack.restarts:
            return [x for x, _, _ in self.pieces]
        view = attack_view(self.net, self.attack.precision)
        self.work.passed(sum(len(y) for _, y, _ in self.pieces) * self.attack.passes)
        return [pgd(view, x, y, attack=self.attack, seed=self.seed, keys=keys) for x, y, keys in self.pieces]

    @torch.no_grad()
    def loss(self, x_adv: list[Tensor]) -> Tensor:
        """The summed loss at the weights as they are."""
        total = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        for i, (_, y, _) in enumerate(self.pieces):
            total += cross_entropy(self.net(x_adv[i]), y).double().sum()
            self.work.passed(len(y))
        return self.set.sum(total)


def checkpoints(iterations: int) -> list[int]:
    """Where APGD looks whether to halve its step (Croce and Hein 2020, section 3)."""
    shares = [0.0, 0.22]
    while math.ceil(shares[-1] * iterations) < iterations:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * iterations) for share in shares[1:]]


def _where(condition: Tensor, one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    return [torch.where(condition, a, b) for a, b in zip(one, other, strict=True)]
