"""Networks kept through the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Period, Run, hookimpl


@dataclass(eq=False)
class Snapshots:
    """Keep the network after the first epoch, every `every` epochs after it, and the last: `hookflat eval` measures
    them (`--which 6`).
    """

    paper: ClassVar[str] = "protocol of Stutz et al. 2021, section 1.3"
    kind: ClassVar[str] = "tool"

    every: Annotated[Period, Field(description="epochs, or a share of the training below 1")] = 5

    @hookimpl
    def epoch_end(self, run: Run) -> None:
        if run.is_due(self.every, first=True):
            run.keep_snapshot()
