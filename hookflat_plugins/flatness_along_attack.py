"""Flatness along an attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Number, Quantity, Subject, flatness_along_attack, hookimpl, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARK, _MARK = "#1b3a6b", "#c8312b"


@dataclass(eq=False)
class FlatnessAlongAttack:
    """Flatness at every point of an attack's path from x to x_adv, and of correctly and wrongly classified examples.

    Relative flatness of the penultimate layer, and the mean rise of the loss in weight-perturbed networks at the same
    points. Numbers: at x, at the sharpest point of the mean over examples, at x_adv; at x_adv of the examples that are
    correct there, and of those that are wrong. Lower is flatter. A table and a figure of all steps are kept.

    As in the code of Walter et al. (2024), it is the mean over examples that is followed from step to step. Examples
    are sharpest at steps of their own; the mean of their peaks, which is no less than the peak here, is not reported.
    """

    paper: ClassVar[str] = "Walter et al. 2024, arXiv 2405.16918; Walter et al. 2025, arXiv 2510.14231"

    xi: Annotated[Number, Field(ge=0, description="radius of the weight perturbations, relative to each layer")] = 0.5
    samples: Annotated[int, Field(ge=1, description="weight perturbations")] = 5
    steps: Annotated[int, Field(ge=1, description="of PGD, from the image itself")] = 20

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        along = flatness_along_attack(
            subject.model,
            subject.examples,
            xi=self.xi,
            samples=self.samples,
            attack=subject.attack(self.steps).but(start="zero"),
            seed=subject.seed,
            work=subject.work("flatness_along_attack"),
        )
        wrong, values = along.wrong[-1], {}
        for name, column in (("relative", along.relative), ("rise", along.rise)):
            mean = column.mean(dim=1)
            values |= {f"along_{name}_start": mean[0], f"along_{name}_peak": mean.max(), f"along_{name}_end": mean[-1]}
            values[f"along_{name}_correct"] = column[-1][~wrong].mean()
            values[f"along_{name}_wrong"] = column[-1][wrong].mean()
        table = {name: column.double().mean(dim=1) for name, column in vars(along).items()}
        subject.keep("flatness_along_attack", {"step": torch.arange(self.steps + 1), **table}, xi=self.xi)
        subject.keep("flatness_along_attack", _drawn(table))
        return {name: value.item() for name, value in values.items() if not math.isnan(value)}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        kinds = {"relative": "relative flatness", "rise": "rise of the loss in weight-perturbed networks"}
        places = {
            "start": "at x",
            "peak": "at the sharpest step of the attack",
            "end": "at x_adv",
            "correct": "at x_adv, examples that stay correct",
            "wrong": "at x_adv, examples that are wrong",
        }
        return {
            f"along_{kind}_{place}": Quantity(
                f"{label} {where}", "loss" if kind == "rise" else "number", lower_is_better=True
            )
            for kind, label in kinds.items()
            for place, where in places.items()
        }

    def passes(self) -> int:
        return self.steps + (1 + self.samples) * (self.steps + 1)


def _drawn(table: dict[str, Tensor]) -> Figure:
    """Both kinds of flatness by step."""
    figure = new_figure(5.2, 3.6)
    left = figure.subplots()
    right = left.twinx()
    left.plot(table["relative"].tolist(), color=_DARK, lw=2)
    right.plot(table["rise"].tolist(), color=_MARK, lw=2)
    left.set_xlabel("step of the attack")
    left.set_ylabel("relative flatness", color=_DARK)
    right.set_ylabel("rise of the loss in weight-perturbed networks", color=_MARK)
    tidy(left)
    return figure
