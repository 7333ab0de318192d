"""The Hessian of the loss: extreme eigenvalues and trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import Losses, Number, Quantity, Subject, hessian_eigenvalues, hessian_trace, hookimpl


@dataclass(eq=False)
class Hessian:
    """Largest and smallest eigenvalues and trace of the Hessian of the mean loss, clean and robust.

    Over the weights of convolutions and linear layers, in evaluation mode. The robust loss is that at adversarial
    examples found once (`remaximise`: anew at every point). Not invariant to rescaling of the weights.
    """

    paper: ClassVar[str] = "Stutz et al. 2021, arXiv 2104.04448; protocol, section 7"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    k: Annotated[int, Field(ge=1, description="largest eigenvalues")] = 1
    probes: Annotated[int, Field(ge=0, description="of Hutchinson's estimate of the trace")] = 20
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    remaximise: Annotated[bool, Field(description="attack anew at every point (not for the trace)")] = False
    tolerance: Annotated[Number, Field(gt=0, description="relative accuracy of the eigenvalues")] = 0.01

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {}
        for loss in self.losses:
            options: dict[str, Any] = {"robust": loss == "robust", "attack": subject.attack(self.steps)}
            options["seed"] = subject.seed
            work = subject.work(f"hessian {loss}")
            eigenvalues = hessian_eigenvalues(
                subject.model,
                subject.examples,
                k=self.k,
                remaximise=self.remaximise and loss == "robust",
                tolerance=self.tolerance,
                work=work,
                **options,
            )
            largest = {f"hessian_{loss}_{i}": value for i, value in enumerate(eigenvalues.largest[1:], start=2)}
            values |= {
                f"hessian_{loss}_max": eigenvalues.largest[0],
                **largest,
                f"hessian_{loss}_ratio": eigenvalues.ratio,
            }
            if self.probes:
                trace = hessian_trace(subject.model, subject.examples, samples=self.probes, work=work, **options)
                values |= {f"hessian_{loss}_trace": trace.trace}
                values |= {f"hessian_{loss}_trace_stderr": trace.standard_error} if self.probes > 1 else {}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        quantities = {}
        for loss in self.losses:
            of = f"of the Hessian, {loss} loss"
            quantities[f"hessian_{loss}_max"] = Quantity(f"largest eigenvalue {of}", lower_is_better=True)
            for i in range(2, self.k + 1):
                quantities[f"hessian_{loss}_{i}"] = Quantity(f"eigenvalue {i} {of}", lower_is_better=True)
            quantities[f"hessian_{loss}_ratio"] = Quantity(
                f"|smallest| / largest eigenvalue {of}", lower_is_better=True
            )
            quantities[f"hessian_{loss}_trace"] = Quantity(f"trace {of}", lower_is_better=True)
        return quantities

    def passes(self) -> int:
        """Sixty products with the Hessian, more or less, find the eigenvalues."""
        total = 0
        for loss in self.losses:
            attack = (self.steps + 1) * (loss == "robust")
            product = 2 * (attack + 1) if attack and self.remaximise else 1
            total += attack + 60 * product + (attack + self.probes if self.probes else 0)
        return total
