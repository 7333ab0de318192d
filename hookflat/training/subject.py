"""What a measure gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hookflat.functional.choices import Precision
from hookflat.functional.examples import Examples
from hookflat.functional.robust_error import RobustError, robust_error
from hookflat.functional.robustness import RobustLoss, robust_loss
from hookflat.functional.threats import Attack, Threat
from hookflat.functional.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Subject:
    """A network and the examples of one split.

    `threat`, `step_size`, `precision`: of the evaluation (`[eval]`). `seed`: for every random number of the measure.
    `start`: the parameters with which the training began, by name, on the CPU; empty where they are not known.
    """

    model: nn.Module
    split: str
    examples: Examples
    num_classes: int
    threat: Threat
    step_size: float
    seed: int
    precision: Precision = "fp32"
    start: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    root: Work = field(default_factory=Work, repr=False)
    kept: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list, repr=False)
    _robust: dict[tuple[int, int], RobustLoss] = field(default_factory=dict, repr=False)

    def attack(self, steps: int = 20, restarts: int = 1) -> Attack:
        """PGD under the evaluation's threat, as the library's functions take it."""
        return Attack(self.threat, self.step_size, steps, restarts, precision=self.precision)

    def robust(self, steps: int, restarts: int) -> RobustLoss:
        """RLoss and RErr by PGD, computed once for each (steps, restarts), however many measures ask.

        `restarts=0` is the clean pass, which all the others share.
        """
        if (steps, restarts) not in self._robust:
            clean = self.robust(0, 0) if restarts else None
            work = self.work(f"robust loss {steps} {restarts}")
            attack = self.attack(steps, restarts)
            self._robust[steps, restarts] = robust_loss(
                self.model, self.examples, attack=attack, seed=self.seed, clean=clean, work=work
            )
        return self._robust[steps, restarts]

    def robust_error(self, steps: int, restarts: int) -> RobustError:
        """RErr by PGD alone, in fewer passes than `robust`: what is broken is attacked no further."""
        return robust_error(
            self.model,
            self.examples,
            attack=self.attack(steps, restarts),
            seed=self.seed,
            clean=self._robust.get((0, 0)),
            work=self.work(f"robust error {steps} {restarts}"),
        )

    def work(self, name: str) -> Work:
        """For the library's functions: what an interrupted measure had finished, under a name of the measure's own."""
        return self.root.part(name)

    def keep(self, name: str, what: str | Figure | dict[str, Tensor], **about: Any) -> None:
        """Put a file beside the results: a text, a figure (as PNG and SVG), a table of columns (as parquet).

        `about`: into the metadata of the table.
        """
        self.kept.append((name, what, about))
