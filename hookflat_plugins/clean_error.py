"""Clean error."""

from __future__ import annotations

from dataclasses import dataclass

from hookflat import hookimpl
from hookflat.training.measuring import Subject


@dataclass(eq=False)
class CleanError:
    """Clean error (share of misclassified images) and clean cross-entropy."""

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        clean = subject.robust(steps=0, restarts=0)
        return {"clean_error": clean.clean_error, "clean_loss": clean.loss}
