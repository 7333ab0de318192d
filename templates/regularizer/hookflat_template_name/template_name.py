"""The regularizer `template_name`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from hookflat import Number, hookimpl
from pydantic import Field
from torch import Tensor


@dataclass(eq=False)
class TemplateName:
    """Confidence penalty: beta times the entropy of the prediction off the loss of each example."""

    paper: ClassVar[str] = "Pereyra et al. 2017, arXiv 1701.06548"
    off: ClassVar[dict[str, Any]] = {"beta": 0}

    beta: Annotated[Number, Field(ge=0, description="of the entropy, in nats")] = 0.1

    @hookimpl(wrapper=True)
    def criterion(self, logits: Tensor) -> Generator[None, Tensor, Tensor]:
        """The training loss of each example, (n,), from what the plugins behind this one make of it.

        A term that is no function of the logits answers `extra_loss` instead, with a scalar.
        """
        losses = yield
        log_p = logits.log_softmax(dim=1)
        entropy = -(log_p.exp() * log_p).sum(dim=1)
        return losses - self.beta * entropy
