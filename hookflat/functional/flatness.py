"""Average-case and worst-case flatness of any network (protocol of Stutz, Hein, Schiele 2021, sections 1.4 to 1.7).

Both are a loss at perturbed weights minus the loss at the weights; lower is flatter. As in `robust_loss`, the
network is left as found and results do not depend on batch size or processes beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import PGD20, pgd
from hookflat.functional.brackets import measuring
from hookflat.functional.choices import check_count, check_length
from hookflat.functional.examples import Loader, Set, set_of
from hookflat.functional.losses import cross_entropy
from hookflat.functional.neighborhood import (
    ball,
    each_on_sphere,
    moved,
    norms,
    perturbed_by_flatness,
    scaled_to,
    stretches,
)
from hookflat.functional.robustness import PGD20X10, mean, robust_loss, robust_losses, standard_error
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.weight_gradients import WeightGradients
from hookflat.functional.work import Values, Work

PGD10 = Attack(steps=10)


@dataclass(frozen=True, eq=False, repr=False)
class Flatness(Shown):
    """Average case: `flatness` = mean of `losses` minus `reference`; worst case: their maximum minus `reference`.

    `losses`: the loss at w + nu, one for each perturbation. `reference`: the loss at w. `standard_error`: of the mean
    of the losses (in the worst case: their spread is what another set of attempts would show).
    """

    flatness: float
    standard_error: float
    losses: list[float]
    reference: float


def average_flatness(
    model: nn.Module,
    loader: Loader,
    *,
    xi: float = 0.5,
    samples: int = 10,
    filters: bool = False,
    attack: Attack = PGD20,
    reference: float | None = None,
    reference_restarts: int = 10,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Flatness:
    """Average-case flatness in RLoss (Eq. 1): `samples` weight perturbations on the sphere of relative radius `xi`.

    Each perturbation is the same for all examples and gets new adversarial examples (PGD). `filters`: radii relative to
    each filter of a convolution instead of each layer. The reference RLoss at w uses `reference_restarts`; pass
    `reference` where it is known already. `restarts=0` measures the clean loss. Raises ValueError for no samples, and
    for a clean reference beside attacks.
    """
    work, attack = work or Work(), attack.but(**options)
    check_count("samples", samples)
    check_length("xi", xi)
    if reference is None:
        if attack.restarts and not reference_restarts:
            raise ValueError("reference_restarts: 0 is the clean loss, which restarts=0 alone is compared with")
        most = attack.but(restarts=reference_restarts if attack.restarts else 0)
        reference = robust_loss(model, loader, attack=most, seed=seed, work=work.part("reference")).loss
    weights = perturbed_by_flatness(model)
    losses = []
    with measuring(model):
        for sample in range(samples):
            nu = each_on_sphere(weights, xi, seeds.generator(seed, "average_flatness", sample), filters=filters)
            draw = seeds.derive_seed(seed, "attack at perturbed weights", sample)
            part = work.part(f"sample {sample}")
            with moved(weights, nu):
                losses.append(mean(robust_losses(model, loader, attack, draw, part)))
    average = math.fsum(losses) / samples
    return Flatness(average - reference, standard_error(losses), losses, reference)


def worst_flatness(
    model: nn.Module,
    loader: Loader,
    *,
    xi: float = 0.00075,
    attempts: int = 10,
    sweeps: int = 20,
    weight_step_size: float = 0.01,
    batch_size: int = 128,
    filters: bool = False,
    robust: bool = True,
    attack: Attack = PGD20X10,
    reference: float | None = None,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Flatness:
    """Worst-case flatness (protocol, sections 1.6 and 1.7): the largest loss in the ball of relative radius `xi`.

    `attempts` joint ascents on weights and inputs, each from a random point, of `sweeps` over the whole set in batches
    of `batch_size`. At each batch the perturbation of every layer moves by `weight_step_size` times the layer's norm
    along its gradient and back into the ball, and the batch's inputs take a step of PGD. All examples are scored at
    the last weights and inputs. `filters`: ball and steps relative to each filter of a convolution. `robust=False`: on
    the clean loss, the weights alone, scored at the weights of the sweep of largest loss; so is `restarts=0`.
    `restarts`, `steps`: of the reference RLoss at w, where `reference` is not given. Raises ValueError for no attempts.

    `batch_size` is part of the definition; how `loader` batches, and over how many processes, is not.
    """
    work, attack = work or Work(), attack.but(**options)
    check_count("attempts", attempts)
    check_length("xi", xi)
    robust = robust and attack.restarts > 0
    if reference is None:
        most = attack if robust else attack.but(restarts=0)
        reference = robust_loss(model, loader, attack=most, seed=seed, work=work.part("reference")).loss
    weights = perturbed_by_flatness(model)
    losses = []
    with measuring(model):
        examples = Held(set_of(loader, model), batch_size)
        gradients = WeightGradients(model, weights, examples.x[: examples.size])
        for attempt in range(attempts):
            generator = seeds.generator(seed, "worst_flatness", attempt)
            draw = seeds.derive_seed(seed, "inputs at perturbed weights", attempt)
            nu = ball(weights, xi, generator, filters=filters)

            def ascend(nu: list[Tensor] = nu, draw: int = draw) -> Values:
                climb = _Climb(model, weights, nu, xi, weight_step_size, filters, gradients, work)
                if not robust:
                    return {"loss": climb.clean(examples, sweeps)}
                return {"loss": climb.robust(examples, sweeps, attack, draw)}

            losses.append(work.once(f"attempt {attempt}", ascend, together=examples.set)["loss"].item())
    return Flatness(max(losses) - reference, standard_error(losses), losses, reference)


def adversarial_direction(
    model: nn.Module,
    loader: Loader,
    *,
    xi: float = 0.005,
    sweeps: int = 7,
    weight_step_size: float = 0.01,
    batch_size: int = 128,
    attack: Attack = PGD10,
    seed: int = 0,
) -> list[Tensor]:
    """A direction in which the loss on adversarial examples of the network rises, for each of `layers(model)`.

    Ascent of the weights in the ball of radius `xi` on fixed adversarial examples; its end, of norm xi ||w_l||_2
    (protocol, section 6.1).
    """
    check_length("xi", xi)
    weights = perturbed_by_flatness(model)
    with measuring(model):
        held, view = Held(set_of(loader, model), batch_size), attack_view(model, attack.precision)
        pieces = torch.arange(len(held.y), device=held.y.device).split(held.size)
        held.x = torch.cat(
            [pgd(view, held.x[i], held.y[i], keys=held.keys[i], attack=attack, seed=seed) for i in pieces]
        )
        nu = ball(weights, xi, seeds.generator(seed, "adversarial_direction"))
        gradients = WeightGradients(model, weights, held.x[: held.size])
        climb = _Climb(model, weights, nu, xi, weight_step_size, False, gradients, Work())
        with climb.under_way():
            for _ in range(sweeps):
                for batch in held.batches():
                    climb.step(held, batch, held.x)
    return scaled_to(climb.nu, weights, xi)


class Held:
    """This process's share of a set, all at once, and where it is in the batches of the definition."""

    def __init__(self, examples: Set, batch_size: int) -> None:
        chunks = list(examples)
        self.size = max(examples.batch_size, *(len(y) for _, y, _ in chunks), 1)
        self.set, self.batch_size = examples, batch_size
        self.total = int(examples.sum(torch.tensor(float(sum(len(y) for _, y, _ in chunks)))))
        if self.total < examples.processes:
            raise ValueError(f"{self.total} examples are too few for {examples.processes} processes")
        self.x, self.y, self.keys = (torch.cat(column) for column in zip(*chunks, strict=True))
        self._members = [self._of(batch) for batch in self.batches()]  # once: looking waits for a GPU

    def batches(self) -> Iterator[int]:
        """The numbers of the batches."""
        yield from range(math.ceil(self.total / self.batch_size))

    def members(self, batch: int) -> Sequence[Tensor]:
        """Where this process's members of a batch are, in pieces as large as the loader's."""
        return self._members[batch]

    def _of(self, batch: int) -> Sequence[Tensor]:
        mine = (self.keys // self.batch_size == batch).nonzero().flatten()
        return mine.split(self.size) if len(mine) else ()


class _Climb:
    """Gradient ascent in the ball around the weights (protocol, sections 1.6 and 1.7).

    `under_way` while the network is at w + nu, which `step` moves; afterwards it is at w again.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: list[nn.Parameter],
        nu: list[Tensor],
        xi: float,
        step_size: float,
        filters: bool,
        gradients: WeightGradients,
        work: Work,
    ) -> None:
        self.model, self.nu, self.work = model, nu, work
        self.weights: list[Tensor] = [*weights]
        self.xi, self.step_size, self.filters, self.gradients = xi, step_size, filters, gradients
        self.sizes = norms(self.weights, filters=filters)

    @contextmanager
    def under_way(self) -> Generator[None]:
        """The weights at w + nu inside, at w again on any exit, bit for bit."""
        self.centre = [w.detach().clone() for w in self.weights]
        try:
            self.place(self.nu)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.centre)

    @torch.no_grad()
    def place(self, nu: list[Tensor]) -> None:
        """The network to w + nu."""
        self.nu = nu
        torch._foreach_copy_(self.weights, self.centre)
        torch._foreach_add_(self.weights, nu)
        self.gradients.refresh()

    def robust(self, examples: Held, sweeps: int, attack: Attack, seed: int) -> Tensor:
        """Mean loss at the last weights and inputs of a joint ascent; inputs start and move as in the attack."""
        ball = attack.threat.ball(examples.x)
        x_adv = ball.start(attack.start, examples.keys, seed)
        with self.under_way():
            for _ in range(sweeps):
                for batch in examples.batches():
                    _, gradients = self.step(examples, batch, x_adv, inputs=True)
                    for index, gradient in gradients:
                        here = ball.part(index)
                        at = x_adv[index]
                        x_adv[index] = here.project(at + attack.step_size * here.ascent(gradient, at))
            return self._loss(examples, x_adv)

    def clean(self, examples: Held, sweeps: int) -> Tensor:
        """Mean clean loss at the weights before the last step of the sweep whose mean loss was largest."""
        best, best_nu = torch.full((), -torch.inf, device=examples.x.device), self.nu
        with self.under_way():
            for _ in range(sweeps):
                total = torch.zeros_like(best)
                for batch in examples.batches():
                    before = [n.clone() for n in self.nu]
                    total += self.step(examples, batch, examples.x)[0]
                best_nu = [torch.where(total > best, b, n) for b, n in zip(before, best_nu, strict=True)]
                best = torch.maximum(best, total)
            self.place(best_nu)
            return self._loss(examples, examples.x)

    def step(
        self, examples: Held, batch: int, x: Tensor, *, inputs: bool = False
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """One step of the weights on a batch: its summed loss, and the gradients by the inputs where asked for."""
        total = torch.zeros((), device=x.device)
        summed: list[Tensor] = []
        by_inputs = []
        for index in examples.members(batch):
            loss, gradients, by_x = self.gradients(x[index], examples.y[index], inputs=inputs)
            if by_x is not None:
                by_inputs.append((index, by_x))
            if summed:
                torch._foreach_add_(summed, gradients)
            summed = summed or gradients
            total += loss
            self.work.passed(len(index))
        summed = summed or [torch.zeros_like(w) for w in self.weights]
        if examples.set.processes > 1:
            flat = examples.set.sum(torch.cat([total.view(1), *(g.flatten() for g in summed)]))
            total, *parts = flat[0], *flat[1:].split([g.numel() for g in summed])
            summed = [part.view_as(g) for part, g in zip(parts, summed, strict=True)]
        self._move(summed)
        return total, by_inputs

    def _move(self, gradients: list[Tensor]) -> None:
        """nu by `step_size` ||w_l|| along the gradient of every layer, and back into the ball; uses up `gradients`."""
        torch._foreach_mul_(gradients, self._stretches(gradients, self.step_size))
        torch._foreach_add_(self.nu, gradients)
        inwards = self._stretches(self.nu, self.xi)
        torch._foreach_clamp_max_(inwards, 1)
        torch._foreach_mul_(self.nu, inwards)
        self.place(self.nu)

    def _stretches(self, tensors: list[Tensor], xi: float) -> list[Tensor]:
        return stretches(norms(tensors, filters=self.filters), self.sizes, xi)

    def _loss(self, examples: Held, x: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        with torch.no_grad():
            for index in torch.arange(len(x), device=x.device).split(examples.size):
                total += cross_entropy(self.model(x[index]), examples.y[index]).double().sum()
                self.work.passed(len(index))
        return examples.set.sum(total) / examples.total
