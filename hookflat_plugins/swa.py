"""Stochastic weight averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hookflat import Period, Run, Share, hookimpl, period_in_epochs, recalibrated


@dataclass(eq=False)
class StochasticWeightAveraging:
    """SWA: w_swa = (w_1 + ... + w_n) / n over the weights at the end of every `every` epochs from `start` on.

    The average is measured and saved, its batch statistics estimated anew on the clean training set; before `start`,
    the network in training is. Meant for a learning rate that stays high to the end, as in the recipe `swa`.
    """

    paper: ClassVar[str] = "Izmailov et al. 2018, arXiv 1803.05407, Alg. 1"
    kind: ClassVar[str] = "averaging"
    excludes: ClassVar[dict[str, str]] = {
        "averaging": "a run saves one average; use one of the two",
        "entropy_sgd": "at the end of an epoch its weights may be those of an inner step",
    }

    start: Annotated[Share, Field(description="share of the training before the first weights are taken")] = 0.75
    every: Annotated[Period, Field(description="epochs, or a share of the training below 1")] = 1

    def __post_init__(self) -> None:
        self._average: AveragedModel | None = None
        self._recalibrated: nn.Module | None = None
        self._loaded: dict[str, Any] | None = None

    def _restored(self, run: Run) -> AveragedModel | None:
        """The average so far, if any, also after a restart."""
        if self._loaded:
            self._average = AveragedModel(run.network)
            self._average.load_state_dict(self._loaded)
        self._loaded = None
        return self._average

    def _taken(self, run: Run) -> None:
        if self._restored(run) is None:
            self._average = AveragedModel(run.network)
        assert self._average is not None
        self._average.update_parameters(run.network)

    @hookimpl
    def after_step(self, run: Run) -> None:
        self._recalibrated = None
        epoch, rest = divmod(run.step, run.steps_per_epoch)
        first = round(self.start * run.epochs)
        if rest == 0 and epoch >= first and (epoch - first) % period_in_epochs(self.every, run.epochs) == 0:
            self._taken(run)

    @hookimpl
    def eval_model(self, run: Run) -> nn.Module | None:
        average = self._restored(run)
        if average is None:
            return None
        if self._recalibrated is None:  # a pass over the training set; several ask after a step
            images, model = run.data.train, average.module
            self._recalibrated = recalibrated(model, images, batch_size=run.batch_size, device=run.device)
        return self._recalibrated

    def state_dict(self) -> dict[str, Any]:
        return dict(self._average.state_dict()) if self._average else self._loaded or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded, self._recalibrated = state, None
