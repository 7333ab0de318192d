"""No attack on examples that are wrong already."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hookflat import Batch, Run, hookimpl


@dataclass(eq=False)
class IgnoreIncorrect:
    """Ignoring incorrect examples: x_adv = x where the clean prediction argmax f(x) is not y; none is dropped.

    Predictions are the network's in evaluation mode (the released code's are in training mode and move the running
    statistics).
    """

    paper: ClassVar[str] = "Stutz et al. 2021, section 4; protocol section 4 and quirk 22"
    kind: ClassVar[str] = "regularizer"

    @hookimpl(wrapper=True)
    def craft(self, run: Run, batch: Batch) -> Generator[None, Tensor, Tensor]:
        x_adv = yield
        with torch.no_grad():
            correct = run.attack_model(batch.x).argmax(dim=1) == batch.y
        return torch.where(correct[:, None, None, None], x_adv, batch.x)
