"""The norm of the weights, and their distance from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hookflat import Quantity, Subject, distance_from_initialization, hookimpl, layers, weight_norm


@dataclass(eq=False)
class WeightNorm:
    """L2 norm of all weights of convolutions and linear layers, and their L2 distance from the initial weights.

    The initial weights are those of the run's recipe and seed; networks that come without a recipe have no distance.
    Not invariant to rescaling.
    """

    paper: ClassVar[str] = "Nagarajan and Kolter 2019, arXiv 1901.01672; Jiang et al. 2020, arXiv 1912.02178"

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        values = {"weight_norm": weight_norm(subject.model)}
        if subject.start.keys() >= layers(subject.model).keys():
            values["distance_from_start"] = distance_from_initialization(subject.model, subject.start)
        return values

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return {
            "weight_norm": Quantity("weight norm", lower_is_better=True),
            "distance_from_start": Quantity("distance from the initial weights", lower_is_better=True),
        }

    def passes(self) -> int:
        return 0
