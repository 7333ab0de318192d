"""A warning when fast adversarial training breaks down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat import Run, Share, hookimpl


@dataclass(eq=False)
class CatastrophicOverfitting:
    """Catastrophic overfitting: warns, once, when RErr by PGD on training images has risen by more than `rise`.

    Networks trained on one-step attacks may suddenly resist those alone. After every epoch the network in training is
    attacked on the first `examples` training images, and its RErr compared with the lowest so far (the official code
    compares with the check before, and stops).
    """

    paper: ClassVar[str] = "Wong et al. 2020, arXiv 2001.03994, section 5.4; github.com/locuslab/fast_adversarial"
    kind: ClassVar[str] = "diagnostic"

    examples: Annotated[int, Field(ge=1, description="the first training images")] = 128
    steps: Annotated[int, Field(ge=1, description="of PGD (5 in the official code)")] = 5
    rise: Annotated[Share, Field(gt=0, description="of RErr, above the lowest so far")] = 0.2

    def __post_init__(self) -> None:
        self._lowest = 1.0
        self._warned = False

    @hookimpl
    def epoch_end(self, run: Run) -> None:
        error = run.subject("train", self.examples, run.network).robust_error(self.steps, 1).error
        run.record("catastrophic_overfitting", "train", rerr_pgd=error)
        if error > self._lowest + self.rise and not self._warned:
            self._warned = True
            run.console.say(
                f"warning: catastrophic overfitting? RErr by PGD-{self.steps} on training images rose from "
                f"{100 * self._lowest:.0f} % to {100 * error:.0f} %: the network may resist its one-step attack alone"
            )
        self._lowest = min(self._lowest, error)

    def passes(self, run: Run) -> int:
        """Examples through the network, all through the training."""
        return run.epochs * self.examples * (self.steps + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self._lowest, "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lowest, self._warned = state["lowest"], state["warned"]
