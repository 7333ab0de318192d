"""Early stopping on held-out examples."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hookflat import Data, Period, Run, UserError, hookimpl


@dataclass(eq=False)
class EarlyStopping:
    """Keep the network that is most robust on held-out examples, as early stopping would; train on to the end.

    Candidates are the first epoch, every `every` epochs after it, and the last; the earliest wins ties. The held-out
    examples are the last of the test set (or of the training set), and no reported number uses them (protocol 1.3).
    """

    paper: ClassVar[str] = "Rice et al. 2020, arXiv 2002.11569; protocol of Stutz et al. 2021, section 1.3"
    kind: ClassVar[str] = "model selection"

    holdout: Annotated[int, Field(ge=1, description="examples, the last of their set")] = 500
    source: Annotated[Literal["test", "train"], Field(description="the set they are taken from")] = "test"
    every: Annotated[Period, Field(description="epochs, or a share of the training below 1")] = 5
    by: Annotated[Literal["rerr_pgd", "rloss"], Field(description="what is smallest")] = "rerr_pgd"
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 7
    restarts: Annotated[int, Field(ge=1, description="of PGD")] = 5

    def __post_init__(self) -> None:
        self.best: float | None = None

    @hookimpl(wrapper=True)
    def build_data(self) -> Generator[None, Data, Data]:
        data = yield
        if not isinstance(data, Data):
            return data  # the loop says whose answer it is
        try:
            return data.hold_out(self.holdout, self.source)
        except ValueError as error:
            raise UserError(f"plugins.early_stopping.holdout: {error} (set fewer, or enabled = false)") from error

    @hookimpl
    def epoch_end(self, run: Run) -> None:
        if not run.is_due(self.every, first=True):
            return
        subject = run.subject("holdout")
        if self.by == "rerr_pgd":  # alone it costs less
            values = {"rerr_pgd": subject.robust_error(self.steps, self.restarts).error}
        else:
            robust = subject.robust(self.steps, self.restarts)
            values = {"rerr_pgd": robust.error, "rloss": robust.loss}
        run.record("early_stopping", "holdout", **values)
        if self.best is None or values[self.by] < self.best:
            self.best = values[self.by]
            run.keep_best(holdout=values)

    def passes(self, run: Run) -> int:
        """Held-out examples through the network, all through the training; a third is right and stays so to the end."""
        whole = (self.steps + 1) * self.restarts
        return run.times_due(self.every, first=True) * self.holdout * (whole // 3 if self.by == "rerr_pgd" else whole)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
