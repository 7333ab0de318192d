"""The norm of the weights, and their distance from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hookflat import Quantity, Subject, hookimpl, layers


@dataclass(eq=False)
class WeightNorm:
    """L2 norm of all weights of convolutions and linear layers, and their L2 distance from the initial weights.

    The initial weights are those of the run's recipe and seed; networks that come without a recipe have no distance.
    Not invariant to rescaling.
    """

    paper: ClassVar[str] = "Nagarajan and Kolter 2019, arXiv 1901.01672; Jiang et al. 2020, arXiv 1912.02178"

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        weights = {name: w.detach().double() for name, w in layers(subject.model).items()}
        values = {"weight_norm": _norm(list(weights.values()))}
        if subject.start.keys() >= weights.keys():
            moves = [w - subject.start[name].to(w) for name, w in weights.items()]
            values["distance_from_start"] = _norm(moves)
        return values

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        return {
            "weight_norm": Quantity("weight norm", lower_is_better=True),
            "distance_from_start": Quantity("distance from the initial weights", lower_is_better=True),
        }

    def passes(self) -> int:
        return 0


def _norm(tensors: list[torch.Tensor]) -> float:
    return torch.nn.utils.get_total_norm(tensors).item()
