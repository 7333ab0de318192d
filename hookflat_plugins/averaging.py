"""Exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from hookflat import Decay, MovingAverage, Run, hookimpl, recalibrated


@dataclass(eq=False)
class Averaging:
    """Weight averaging: w_avg <- decay w_avg + (1 - decay) w after every step; the average is measured and saved.

    Running statistics of batch norm: averaged like the weights ("average"), the live network's ("copy", the paper's
    released code), or estimated anew on the clean training set whenever the average is measured ("recalibrate").
    """

    paper: ClassVar[str] = "Izmailov et al. 2018, arXiv 1803.05407; Gowal et al. 2020, arXiv 2010.03593"
    kind: ClassVar[str] = "averaging"
    off: ClassVar[dict[str, Any]] = {"decay": 0}

    decay: Annotated[Decay, Field(description="of the average at each step (tau)")] = 0.9975
    statistics: Annotated[Literal["average", "copy", "recalibrate"], Field(description="of batch norm")] = "average"

    def __post_init__(self) -> None:
        self._average = MovingAverage(self.decay, statistics=self.statistics == "average")
        self._recalibrated: nn.Module | None = None

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Any:
        optimizer = yield
        self._average.of(run.network)  # it begins with the weights before the first step
        return optimizer

    @hookimpl
    def after_step(self, run: Run) -> None:
        self._recalibrated = None
        self._average.update(run.network)

    @hookimpl
    def eval_model(self, run: Run) -> nn.Module:
        average = self._average.of(run.network)
        if self.statistics != "recalibrate":
            return average
        if self._recalibrated is None:  # a pass over the training set; several ask after a step
            images = run.data.train
            self._recalibrated = recalibrated(average, images, batch_size=run.batch_size, device=run.device)
        return self._recalibrated

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)
        self._recalibrated = None
