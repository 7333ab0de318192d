"""The pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hookflat import hookimpl
from hookflat.evaluation.weights import load_weights
from hookflat.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(eq=False)
class Figures:
    """Robust overfitting over the epochs, and RLoss against flatness through the training."""

    paper: ClassVar[str] = "Stutz et al. 2021, Fig. 2 and Fig. 5"

    @hookimpl
    def draw(self, run: Run, records: list[dict[str, Any]]) -> dict[str, Figure]:
        from hookflat.functional.figures import flatness_through_training, overfitting

        best = load_weights(run.folder.best)[1]["epoch"] if run.folder.best.exists() else None
        drawn = {
            "overfitting": overfitting(records, run.epochs, best),
            "flatness_through_training": flatness_through_training(records, run.epochs, best),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}
