"""Training at populations of perturbed weights, random or attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Run, ball, hookimpl, in_mode, layers, moved, project, scaled_to, sphere

_ONE_POPULATION = "both give the gradient at perturbed weights of their own; use one"


@dataclass(eq=False)
class RandomWeights:
    """Random weight perturbation: the mean gradient at `population` random points of the relative L2 sphere.

    For each nu_i with ||nu_l|| = xi ||w_l||: the gradient of the loss at w + nu_i in training mode, every entry clipped
    to [-clip, clip], then the mean over i. A pass at w comes first: it alone moves the running statistics, and its loss
    decides for the next step: curriculum "simple" always perturbs, "threshold" only after a loss below `threshold` (for
    AT, the cross-entropy on x_adv). The first step is ordinary. Weights of two or more dimensions.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, section 4; protocol 4.1"
    kind: ClassVar[str] = "weight perturbation"
    off: ClassVar[dict[str, Any]] = {"population": 0}
    excludes: ClassVar[dict[str, str]] = {"weight_attack": _ONE_POPULATION}

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer")] = 0.5
    population: Annotated[int, Field(ge=0, description="perturbations a step; 0: none")] = 1
    curriculum: Annotated[Literal["simple", "threshold"], Field(description="when to perturb")] = "simple"
    threshold: Annotated[Number, Field(gt=0, description="training loss under which to perturb")] = 2.1
    clip: Annotated[Number, Field(gt=0, description="largest absolute entry of each perturbed gradient")] = 0.05

    def __post_init__(self) -> None:
        self._last_loss: Tensor | None = None

    @hookimpl
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor | None:
        if self.population == 0:
            return None
        perturb = self._due(run)
        with torch.set_grad_enabled(not perturb):
            loss = run.loss_and_gradients(batch, x_adv)
        self._last_loss = run.accelerator.reduce(loss, "mean")
        if perturb:
            self._perturbed(run, batch, x_adv)
        return loss

    def _due(self, run: Run) -> bool:
        if self.curriculum == "simple":
            return run.step > 0
        return self._last_loss is not None and bool(self._last_loss < self.threshold)

    def _perturbed(self, run: Run, batch: Batch, x_adv: Tensor) -> None:
        """Fill the gradients with the mean over the population."""
        trained = [p for p in run.network.parameters() if p.requires_grad]
        weights = list(layers(run.network, biases=False).values())
        mean = [torch.zeros_like(p) for p in trained]
        for _ in range(self.population):
            with moved(weights, self.perturbation(run, batch, x_adv, weights)):
                gradients = run.gradients_at(batch, x_adv, trained)
            torch._foreach_clamp_min_(gradients, -self.clip)
            torch._foreach_clamp_max_(gradients, self.clip)
            torch._foreach_add_(mean, gradients, alpha=1 / self.population)
        for p, gradient in zip(trained, mean, strict=True):
            p.grad = gradient

    def perturbation(self, run: Run, batch: Batch, x_adv: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """One perturbation, a tensor for each of `weights`."""
        return sphere(weights, self.xi, run.rng("random_weights"))

    def state_dict(self) -> dict[str, Any]:
        return {"last_loss": None if self._last_loss is None else self._last_loss.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last_loss = state["last_loss"]


@dataclass(eq=False)
class WeightAttack(RandomWeights):
    """AWP in the paper's own form: the mean gradient at `population` attacked weights, clipped entry by entry.

    The attack ascends the whole loss in evaluation mode: nu_l <- P(nu_l + step_size ||w_l|| g_l / ||g_l||), `steps`
    times, P projecting on ||nu_l|| <= xi ||w_l||; the last iterate counts. Its start has a uniform direction and a norm
    uniform in [0, xi ||w_l||]. `awp` is the official form. Population, curricula and clipping as in `random_weights`.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, section 4; protocol 4.1; Wu et al. 2020, arXiv 2004.05884"
    excludes: ClassVar[dict[str, str]] = {"awp": "both are adversarial weight perturbations; use one"}

    xi: Annotated[Number, Field(ge=0, description="radius, relative to the L2 norm of each layer")] = 0.005
    steps: Annotated[int, Field(ge=1, description="of the attack (grid 1, 3, 5)")] = 3
    step_size: Annotated[Number, Field(gt=0, description="relative to ||w_l||; 1: to the boundary at once")] = 0.01
    start: Annotated[Literal["uniform_norm", "zero"], Field(description="of the attack")] = "uniform_norm"

    def perturbation(self, run: Run, batch: Batch, x_adv: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """One attacked perturbation."""
        nu = [torch.zeros_like(w) for w in weights]
        if self.start == "uniform_norm":
            nu = ball(weights, self.xi, run.rng("weight_attack"))
        with in_mode(run.network, train=False):
            for _ in range(self.steps):
                with moved(weights, nu):
                    gradients = run.gradients_at(batch, x_adv, weights)
                step = scaled_to(gradients, weights, self.step_size)
                nu = project(torch._foreach_add(nu, step), weights, self.xi)
        return nu
