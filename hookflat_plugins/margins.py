"""Margins and confidence, clean and on adversarial examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import Losses, Quantity, Subject, hookimpl, margins


@dataclass(eq=False)
class MarginsMeasure:
    """Margins in logits (mean and 10 % quantile) and in probabilities (mean), and confidence, the largest probability.

    Confidence also over the examples that are wrong there. At the images and at PGD's adversarial examples.
    """

    paper: ClassVar[str] = "Jiang et al. 2020, arXiv 1912.02178; Kim et al. 2023, Fantastic Robustness Measures"

    losses: Losses = field(default_factory=lambda: ["clean", "robust"])
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {}
        for loss in self.losses:
            attack, work = subject.attack(self.steps), subject.work(f"margins {loss}")
            options: dict[str, Any] = {"robust": loss == "robust", "attack": attack, "seed": subject.seed, "work": work}
            measured = margins(subject.model, subject.examples, **options)
            values[f"logit_margin_{loss}"] = measured.logit.mean().item()
            values[f"logit_margin_quantile_{loss}"] = measured.logit.quantile(0.1).item()
            values[f"probability_margin_{loss}"] = measured.probability.mean().item()
            values[f"confidence_{loss}"] = measured.confidence.mean().item()
            values[f"confidence_wrong_{loss}"] = measured.confidence[measured.wrong].mean().item()
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        quantities = {}
        for loss in self.losses:
            where = "clean" if loss == "clean" else "adversarial examples"
            quantities[f"logit_margin_{loss}"] = Quantity(f"logit margin, {where}", lower_is_better=False)
            label = f"10 % quantile of the logit margin, {where}"
            quantities[f"logit_margin_quantile_{loss}"] = Quantity(label, lower_is_better=False)
            quantities[f"probability_margin_{loss}"] = Quantity(f"probability margin, {where}", lower_is_better=False)
            rank = 1 if loss == "robust" else 0
            quantities[f"confidence_{loss}"] = Quantity(f"confidence, {where}", "share", role="confidence", rank=rank)
            quantities[f"confidence_wrong_{loss}"] = Quantity(f"confidence where wrong, {where}", "share")
        return quantities

    def passes(self) -> int:
        return len(self.losses) + (self.steps + 1) * ("robust" in self.losses)
