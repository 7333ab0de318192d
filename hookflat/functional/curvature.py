"""Other measures of flatness, to meet the paper's on the same networks: Hessian, SAM-sharpness, relative flatness.

Each is of the clean loss, or of the robust loss at adversarial examples (PGD, `restarts`). The network is left as
found; results do not depend on batch size or processes beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import PGD20, pgd
from hookflat.functional.brackets import differentiable, measuring, twice_differentiable
from hookflat.functional.examples import Loader, Set, set_of
from hookflat.functional.losses import cross_entropy
from hookflat.functional.neighborhood import layers, moved, sharpest
from hookflat.functional.robustness import standard_error
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work


@dataclass(frozen=True, eq=False, repr=False)
class Eigenvalues(Shown):
    """Of the Hessian of the mean loss: the `largest`, descending, and the `smallest` one."""

    largest: list[float]
    smallest: float

    @property
    def ratio(self) -> float:
        """|smallest| / largest: how far from convex."""
        return abs(self.smallest) / self.largest[0] if self.largest[0] else math.nan


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Shown):
    """Of the Hessian of the mean loss: mean over random probes, and its `standard_error`."""

    trace: float
    standard_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Sharpness(Shown):
    """`sharpness` = the loss at the perturbed weights minus `reference`, the loss at the weights."""

    sharpness: float
    reference: float


def hessian_eigenvalues(
    model: nn.Module,
    loader: Loader,
    *,
    k: int = 4,
    robust: bool = True,
    remaximise: bool = False,
    tolerance: float = 1e-3,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Eigenvalues:
    """The `k` largest eigenvalues and the smallest, by Lanczos (scipy's ARPACK) on exact Hessian-vector products.

    Over the weights of convolutions and linear layers (no biases, no norms), in evaluation mode (protocol, section 7).
    The robust loss is that at adversarial examples found at w and then fixed; `remaximise` finds them anew at every
    point (central differences of the robust loss's gradient, which by Danskin's theorem is that at the new examples).
    `attack`, or any of its values by keyword. Not invariant to rescaling.
    """
    work, weights = work or Work(), list(layers(model, biases=False).values())
    with measuring(model):
        points = Points(model, loader, attack_for(robust, attack, options), seed, work)
        hessian = HessianOf(weights, points, remaximise)
        start = torch.randn(hessian.size, generator=seeds.generator(seed, "hessian_eigenvalues")).double().numpy()

        def solve() -> Values:
            return {"eigenvalues": _led(hessian, lambda product: _extremes(product, start, k, tolerance))}

        values = work.once("eigenvalues", solve, together=points.set)["eigenvalues"].tolist()
    return Eigenvalues(values[:-1], values[-1])


def hessian_trace(
    model: nn.Module,
    loader: Loader,
    *,
    samples: int = 20,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Trace:
    """The trace of the same Hessian by Hutchinson's estimator: the mean of v H v over random signs v."""
    work, weights = work or Work(), list(layers(model, biases=False).values())
    products = []
    with measuring(model):
        points = Points(model, loader, attack_for(robust, attack, options), seed, work)
        hessian = HessianOf(weights, points)
        for sample in range(samples):
            generator = seeds.generator(seed, "hessian_trace", sample)
            v = (2.0 * torch.randint(0, 2, (hessian.size,), generator=generator) - 1).to(hessian.weights[0])

            def probe(v: Tensor = v) -> Values:
                return {"product": (v.double() * hessian.product(v).double()).sum()}

            products.append(work.once(f"probe {sample}", probe, together=points.set)["product"].item())
    return Trace(math.fsum(products) / samples, standard_error(products))


def sharpness(
    model: nn.Module,
    loader: Loader,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> Sharpness:
    """SAM-sharpness (Foret et al. 2021), or adaptive sharpness: L(w + nu) - L(w) with nu = rho g / ||g||, or
    rho T^2 g / ||T g|| with T = |w|.

    T stretches every tensor, biases too, as in Andriushchenko et al. 2023 (Kwon et al. 2021 leave biases unstretched):
    only so is the adaptive one invariant to rescaling of networks whose convolutions have biases.

    One step along the gradient g of the whole set's loss, over the layers of `hookflat.layers`, biases
    included; the robust loss is attacked anew at w + nu.
    """
    work, weights = work or Work(), list(layers(model).values())
    with measuring(model):
        points = Points(model, loader, attack_for(robust, attack, options), seed, work)

        def climb() -> Values:
            reference, gradients = points.gradients(weights)
            scales = [w.detach().abs() for w in weights] if adaptive else None
            with moved(weights, sharpest(gradients, rho, scales)):
                points.find()
                return {"before": reference, "after": points.gradients([])[0]}

        losses = work.once("sharpness", climb, together=points.set)
    return Sharpness((losses["after"] - losses["before"]).item(), losses["before"].item())


def relative_flatness(
    model: nn.Module,
    loader: Loader,
    *,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> float:
    """Relative flatness of the penultimate layer: sum over classes s, s' of <w_s, w_s'> tr(H_ss'); lower is flatter.

    H_ss' is a block of the Hessian of the mean loss by the rows w_s of the last linear layer. For cross-entropy it is
    exact in closed form: the mean over examples of ||phi||^2 (sum_s p_s ||w_s||^2 - ||sum_s p_s w_s||^2), with phi the
    layer's input and p the softmax (Petzka et al. 2021, Def. 3; Walter et al. 2025).

    Raises ValueError for a network that does not end in a linear layer (or a 1x1 convolution in its place).
    """
    work = work or Work()
    with measuring(model):
        points = Points(model, loader, attack_for(robust, attack, options), seed, work)

        def measure() -> Values:
            total = torch.zeros((), dtype=torch.float64, device=points.device)
            for x, y in points.batches:
                total += relative_flatness_of(model, x)[0].sum()
                work.passed(len(y))
            return {"kappa": points.set.sum(total) / points.total}

        return work.once("relative_flatness", measure, together=points.set)["kappa"].item()


def relative_flatness_of(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) each example's part of `relative_flatness`, in double precision, and the logits (n, K)."""
    phi, weight, logits = _last_layer(model, x)
    p = logits.double().softmax(dim=1)
    spread = p @ weight.square().sum(dim=1) - (p @ weight).square().sum(dim=1)
    return phi.square().sum(dim=1) * spread, logits


def attack_for(robust: bool, attack: Attack, options: AttackOptions) -> Attack:
    """The attack with other values; none for the clean loss."""
    return attack.but(**options) if robust else attack.but(restarts=0)


class Points:
    """The images (adversarial ones) at which a loss is differentiated, this process's share, held in memory."""

    def __init__(self, model: nn.Module, loader: Loader, attack: Attack, seed: int, work: Work) -> None:
        self.model, self.attack, self.seed, self.work = model, attack, seeds.derive_seed(seed, "points"), work
        self.device = next(model.parameters()).device
        self.set: Set = set_of(loader, model)
        self.clean = list(self.set)
        self.total = float(self.set.sum(torch.tensor(float(sum(len(y) for _, y, _ in self.clean)))))
        self.find()

    def find(self) -> None:
        """The adversarial examples at the present weights."""
        attack = self.attack
        self.batches = [(x, y) for x, y, _ in self.clean]
        if attack.restarts:
            view = attack_view(self.model, attack.precision)
            self.batches = [(pgd(view, x, y, attack=attack, seed=self.seed, keys=keys), y) for x, y, keys in self.clean]
            self.work.passed(sum(len(y) for _, y in self.batches) * attack.passes)

    def gradients(self, weights: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
        """The mean loss over all examples and its gradients."""
        summed = [torch.zeros_like(w) for w in weights]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with differentiable(weights), torch.set_grad_enabled(bool(weights)):
            for x, y in self.batches:
                loss = cross_entropy(self.model(x), y).sum()
                if weights:
                    torch._foreach_add_(summed, torch.autograd.grad(loss, weights, materialize_grads=True))
                total += loss.detach()
                self.work.passed(len(y))
        return self.set.sum(total) / self.total, [self.set.sum(g) / self.total for g in summed]


class HessianOf:
    """Products with the Hessian of the mean loss by `layers(model, biases=False)`, as one long vector."""

    def __init__(self, weights: list[nn.Parameter], points: Points, remaximise: bool = False) -> None:
        self.weights, self.points = weights, points
        self.sizes = [w.numel() for w in self.weights]
        self.size = sum(self.sizes)
        self.product: Callable[[Tensor], Tensor] = self._differences if remaximise else self._exact

    def _split(self, v: Tensor) -> list[Tensor]:
        return [part.view_as(w) for part, w in zip(v.split(self.sizes), self.weights, strict=True)]

    def _exact(self, v: Tensor) -> Tensor:
        """Reverse over reverse."""
        parts, product = self._split(v), torch.zeros_like(v)
        with differentiable(self.weights), twice_differentiable(), torch.enable_grad():
            for x, y in self.points.batches:
                loss = cross_entropy(self.points.model(x), y).sum()
                gradients = torch.autograd.grad(loss, self.weights, create_graph=True, materialize_grads=True)
                inner = torch.stack([(g * p).sum() for g, p in zip(gradients, parts, strict=True)]).sum()
                second = torch.autograd.grad(inner, self.weights, materialize_grads=True)
                product += torch.cat([s.flatten() for s in second])
                self.points.work.passed(len(y))
        return self.points.set.sum(product) / self.points.total

    def _differences(self, v: Tensor, radius: float = 1e-3) -> Tensor:
        """(g(w + h v) - g(w - h v)) / 2h at fresh adversarial examples, with ||h v|| = radius ||w||."""
        size = torch.stack([w.norm() for w in self.weights]).norm()
        h = radius * size / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        sides = []
        for signed in (h, -h):
            with moved(self.weights, self._split(signed * v)):
                self.points.find()
                sides.append(torch.cat([g.flatten() for g in self.points.gradients(self.weights)[1]]))
        return (sides[0] - sides[1]) / (2 * h)


Product = Callable[[np.ndarray], np.ndarray]


def _led(hessian: HessianOf, solve: Callable[[Product], np.ndarray]) -> Tensor:
    """What `solve` finds on the main process; the others take part in its products until it is done."""
    like, examples = hessian.weights[0], hessian.points.set

    def product(v: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(v.ravel()).to(like)
        if examples.processes > 1:
            examples.sum(torch.ones(1))
            vector = examples.sum(vector)
        return hessian.product(vector).double().cpu().numpy()

    if examples.rank == 0:
        eigenvalues = torch.from_numpy(solve(product))
        if examples.processes == 1:
            return eigenvalues
        examples.sum(torch.zeros(1))
        examples.sum(torch.tensor([float(len(eigenvalues))]))
        return examples.sum(eigenvalues)
    while examples.sum(torch.zeros(1)) > 0:
        hessian.product(examples.sum(torch.zeros(hessian.size).to(like)))
    return examples.sum(torch.zeros(int(examples.sum(torch.zeros(1))), dtype=torch.float64))


def _extremes(product: Product, start: np.ndarray, k: int, tolerance: float) -> np.ndarray:
    """The k largest eigenvalues, descending, and the smallest; NaN for one that does not converge.

    The smallest is found as the largest of (largest - H), so that `tolerance` is relative to the spread of the values:
    relative to itself, one near zero would never be reached.
    """
    size = len(start)
    if size <= 4 * k + 20:  # ARPACK wants more room than there is
        values = np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(size)]))
        return np.append(values[::-1][:k], values[0])
    largest = _largest(product, start, k, tolerance)
    top = largest[0]
    return np.append(largest, top - _largest(lambda v: top * v.ravel() - product(v), start, 1, tolerance))


def _largest(product: Product, start: np.ndarray, k: int, tolerance: float) -> np.ndarray:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # takes half a second to import

    shape = (len(start), len(start))
    operator = LinearOperator(shape=shape, matvec=product, dtype=np.float64)  # ty: ignore[unknown-argument]
    options = {"v0": start, "tol": tolerance, "maxiter": 200, "return_eigenvectors": False}
    try:
        return np.sort(eigsh(operator, k=k, which="LA", **options))[::-1]
    except ArpackNoConvergence as error:
        converged = np.sort(error.eigenvalues)[::-1]
        return np.append(converged, np.full(k - len(converged), np.nan))


def _last_layer(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input (n, F) and weight (K, F) of the linear layer that gives the logits (n, K)."""
    last: list[tuple[nn.Module, Tensor, Tensor]] = []

    def hear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        last[:] = [(module, args[0], output)]

    linear = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [m.register_forward_hook(hear) for m in linear]
    try:
        with torch.no_grad():
            logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if last:
        module, phi, output = last[0]
        weight = cast(Tensor, module.weight).detach().double().flatten(1)
        of_pixels = phi.numel() != len(x) * weight.shape[1] or output.numel() != logits.numel()
        if not of_pixels and torch.equal(output.reshape(logits.shape), logits):
            return phi.flatten(1).double(), weight, logits
    raise ValueError("relative flatness is defined for networks whose logits come straight from a linear layer")
