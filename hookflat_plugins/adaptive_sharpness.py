"""Adaptive sharpness, average-case and worst-case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hookflat import Losses, Number, Quantity, Subject, average_sharpness, hookimpl, worst_sharpness

Rho = Annotated[Number, Field(ge=0, description="radius, in units of |w| (see `adaptive`)")]
Norms = Annotated[list[Literal["L2", "Linf"]], Field(description="of the weights' perturbation")]
Logits = Annotated[list[Literal["plain", "normalized"]], Field(description="as they are, or centred and of norm one")]


@dataclass(eq=False)
class AdaptiveSharpness:
    """Adaptive sharpness: L(w + c u) - L(w) with c = |w| element by element, over all weights at once.

    Average case: u Gaussian of deviation rho (L2) or uniform in [-rho, rho] (Linf). Worst case: the largest in the L2
    or Linf ball of radius rho, by APGD for every `batch_size` examples. In the clean and in the robust loss, with and
    without normalised logits. Rescaling does not change it; with `adaptive = false` it does.
    """

    paper: ClassVar[str] = (
        "Andriushchenko et al. 2023, arXiv 2302.07011; github.com/tml-epfl/sharpness-vs-generalization"
    )

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    norms: Norms = field(default_factory=lambda: ["L2", "Linf"])
    logits: Logits = field(default_factory=lambda: ["plain", "normalized"])
    adaptive: Annotated[bool, Field(description="c = |w|; otherwise c = 1")] = True
    average_rho_l2: Rho = 0.1
    average_rho_linf: Rho = 0.2
    worst_rho_l2: Rho = 0.5
    worst_rho_linf: Rho = 0.002
    samples: Annotated[int, Field(ge=0, description="of the average case; 0 leaves it out")] = 20
    iterations: Annotated[int, Field(ge=0, description="of APGD in the worst case; 0 leaves it out")] = 20
    batch_size: Annotated[int, Field(ge=1, description="examples that share a worst case (m)")] = 128
    steps: Annotated[int, Field(ge=1, description="of PGD on the inputs, for the robust loss")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values: dict[str, float] = {}
        references: dict[tuple[str, str], float] = {}
        for name, case, loss, norm, logits in self._each():
            common: dict[str, Any] = {"weight_norm": norm, "adaptive": self.adaptive, "robust": loss == "robust"}
            common |= {"normalize_logits": logits == "normalized", "attack": subject.attack(self.steps)}
            common |= {"seed": subject.seed, "work": subject.work(name), "rho": self._rho(case, norm)}
            if case == "average":
                common |= {"samples": self.samples, "reference": references.get((loss, logits))}
                measured = average_sharpness(subject.model, subject.examples, **common)
                references[loss, logits] = measured.reference
                values[name] = measured.flatness
                values |= {f"{name}_stderr": measured.standard_error} if self.samples > 1 else {}
            else:
                common |= {"iterations": self.iterations, "batch_size": self.batch_size}
                values[name] = worst_sharpness(subject.model, subject.examples, **common).sharpness
        return values

    def _each(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Name, case, loss, norm and logits of every number."""
        for case in [*(["average"] if self.samples else []), *(["worst"] if self.iterations else [])]:
            for loss in self.losses:
                for norm in self.norms:
                    for logits in self.logits:
                        last = "_normalized" if logits == "normalized" else ""
                        kind = "adaptive_" if self.adaptive else ""
                        yield f"{kind}{case}_sharpness_{norm.lower()}_{loss}{last}", case, loss, norm, logits

    def _rho(self, case: str, norm: str) -> float:
        return getattr(self, f"{case}_rho_{norm.lower()}")

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        kind = "adaptive " if self.adaptive else ""
        return {
            name: Quantity(
                f"{kind}{case}-case sharpness, {norm}, {loss} loss"
                + (", normalised logits" if logits == "normalized" else ""),
                "loss",
                lower_is_better=True,
            )
            for name, case, loss, norm, logits in self._each()
        }

    def passes(self) -> int:
        total = 0
        for _, case, loss, norm, _ in self._each():
            attack, reference = (self.steps + 1) * (loss == "robust"), norm == self.norms[0]
            average, worst = (self.samples + reference) * (attack + 1), 2 * attack + self.iterations + 3
            total += average if case == "average" else worst
        return total
