"""The spectral density of the Hessian, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attacks import PGD20
from hookflat.functional.brackets import measuring
from hookflat.functional.curvature import HessianOf, Points, attack_for
from hookflat.functional.examples import Loader
from hookflat.functional.neighborhood import layers
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Shown):
    """Eigenvalues as a quadrature: (P,) `values` and `weights` that add up to one, and how many eigenvalues there are.

    Means of f(eigenvalue) over the spectrum are sums of weights f(values).
    """

    values: Tensor
    weights: Tensor
    size: int

    @property
    def largest(self) -> float:
        """The largest eigenvalue, to the accuracy of so many steps of Lanczos."""
        return float(self.values.max())

    @property
    def frobenius(self) -> float:
        """The Frobenius norm of the Hessian, the root of the sum of squared eigenvalues."""
        return math.sqrt(self.size * float((self.weights * self.values.square()).sum()))

    def at(self, points: Tensor, width: float) -> Tensor:
        """The density at `points`, every value widened to a Gaussian of deviation `width`."""
        bells = torch.exp(-0.5 * ((points[:, None] - self.values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights


def hessian_density(
    model: nn.Module,
    loader: Loader,
    *,
    probes: int = 2,
    lanczos_steps: int = 30,
    robust: bool = True,
    attack: Attack = PGD20,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> SpectralDensity:
    """The spectrum of the Hessian that `hessian_eigenvalues` has the ends of.

    Stochastic Lanczos quadrature (Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159; Yao et al. 2020, PyHessian): from
    each of `probes` random signs, `lanczos_steps` steps with full reorthogonalisation; the eigenvalues of the
    tridiagonal matrix are nodes, the squared first entries of its eigenvectors their weights. Not invariant to
    rescaling.
    """
    work, weights = work or Work(), list(layers(model, biases=False).values())
    nodes: list[Values] = []
    with measuring(model):
        points = Points(model, loader, attack_for(robust, attack, options), seed, work)
        hessian = HessianOf(weights, points)
        for probe in range(probes):
            generator = seeds.generator(seed, "hessian_density", probe)
            v = (2.0 * torch.randint(0, 2, (hessian.size,), generator=generator) - 1).to(hessian.weights[0])
            nodes.append(
                work.once(f"density {probe}", lambda v=v: _nodes(hessian, v, lanczos_steps), together=points.set)
            )
    values, shares = (torch.cat([f[name] for f in nodes]) for name in ("values", "weights"))
    return SpectralDensity(values, shares / probes, hessian.size)


def _nodes(hessian: HessianOf, v: Tensor, steps: int) -> Values:
    """Nodes and weights of one probe."""
    basis, alphas, betas = [v / v.norm()], [], []
    for _ in range(min(steps, hessian.size)):
        w = hessian.product(basis[-1])
        alphas.append((w @ basis[-1]).double())
        for _ in range(2):  # twice is enough
            for q in basis:
                w = w - (w @ q) * q
        beta = w.norm()
        betas.append(beta.double())
        basis.append(w / beta.clamp_min(torch.finfo(w.dtype).tiny))
    diagonal, beside = (torch.stack(x).cpu().numpy() for x in (alphas, betas))
    small = np.abs(beside[:-1]) <= 1e-6 * max(np.abs(diagonal).max(), 1e-30)
    whole = int(small.argmax()) + 1 if small.any() else len(diagonal)  # an invariant subspace ends the recurrence
    matrix = np.diag(diagonal[:whole]) + np.diag(beside[: whole - 1], 1) + np.diag(beside[: whole - 1], -1)
    values, vectors = np.linalg.eigh(matrix)
    return {"values": torch.from_numpy(values), "weights": torch.from_numpy(vectors[0] ** 2)}
