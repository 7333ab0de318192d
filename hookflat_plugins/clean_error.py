"""Clean error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hookflat import Quantity, Subject, hookimpl


@dataclass(eq=False)
class CleanError:
    """Clean error (share of misclassified images) and clean cross-entropy."""

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        clean = subject.robust(steps=0, restarts=0)
        return {"clean_error": clean.clean_error, "clean_loss": clean.loss}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        both: dict[str, Any] = {"lower_is_better": True, "predictor": False}
        return {
            "clean_error": Quantity("clean error", "share", role="clean error", headline=True, **both),
            "clean_loss": Quantity("clean loss", "loss", **both),
        }

    def searches(self) -> list[tuple[int, int]]:
        return [(0, 0)]

    def passes(self) -> int:
        return 0
