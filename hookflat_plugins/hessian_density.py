"""The spectral density of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from hookflat import Losses, Quantity, SpectralDensity, Subject, hessian_density, hookimpl, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(eq=False)
class HessianDensity:
    """Spectral density of the Hessian of the mean loss, clean and robust, by stochastic Lanczos quadrature.

    Its number is the Frobenius norm. Nodes and weights are kept as a table, the density as a figure. Over the weights
    that `hessian` takes. Not invariant to rescaling.
    """

    paper: ClassVar[str] = "Ghorbani et al. 2019, arXiv 1901.10159; Yao et al. 2020, arXiv 1912.07145"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    probes: Annotated[int, Field(ge=1, description="random starts")] = 2
    lanczos_steps: Annotated[int, Field(ge=2, description="from each")] = 30
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {}
        for loss in self.losses:
            options: dict[str, Any] = {"probes": self.probes, "lanczos_steps": self.lanczos_steps, "seed": subject.seed}
            density = hessian_density(
                subject.model,
                subject.examples,
                robust=loss == "robust",
                attack=subject.attack(self.steps),
                work=subject.work(f"hessian_density {loss}"),
                **options,
            )
            values[f"hessian_{loss}_frobenius"] = density.frobenius
            subject.keep(
                f"hessian_density_{loss}", {"eigenvalue": density.values, "weight": density.weights}, **options
            )
            subject.keep(f"hessian_density_{loss}", _drawn(density, loss))
        return values

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return {
            f"hessian_{loss}_frobenius": Quantity(f"Frobenius norm of the Hessian, {loss} loss", lower_is_better=True)
            for loss in self.losses
        }

    def passes(self) -> int:
        products = len(self.losses) * self.probes * self.lanczos_steps
        return products + (self.steps + 1) * ("robust" in self.losses)


def _drawn(density: SpectralDensity, loss: str) -> Figure:
    """The density over the eigenvalues, on a logarithmic axis."""
    low, high = float(density.values.min()), float(density.values.max())
    width = max((high - low) / 100, 1e-12)
    grid = torch.linspace(low - 5 * width, high + 5 * width, 500, dtype=density.values.dtype)
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    axes.semilogy(grid.tolist(), density.at(grid, width).clamp_min(1e-12).tolist(), color="#1b3a6b", lw=1.5)
    axes.set(xlabel=f"eigenvalue of the Hessian, {loss} loss", ylabel="density")
    axes.set_ylim(bottom=0.01 / density.size / width)
    tidy(axes)
    return figure
