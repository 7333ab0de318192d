"""Averaged networks, and their statistics."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from hookflat.functional.brackets import draws_undone, restored
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples
from hookflat.functional.layers import AuxiliaryHead, device_of

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


class MovingAverage:
    """m <- decay m + (1 - decay) w of a network's weights w, by timm; it begins as the network that it first sees.

    That is `begin`, before anything moves the weights: in a wrapper of `build_optimizer`, or where the average is to
    start. `statistics`: whether running statistics are averaged too, or those of the network. What `load_state_dict` is
    given counts from the next sight on.
    """

    def __init__(self, decay: float, *, statistics: bool = True) -> None:
        self.decay, self.statistics = decay, statistics
        self._average: ModelEmaV3 | None = None
        self._loaded: dict[str, Any] | None = None

    def begin(self, network: nn.Module) -> None:
        """As the network is now, unless it has begun."""
        self._started(network)

    def of(self, network: nn.Module) -> nn.Module:
        """The average, in evaluation mode."""
        return self._started(network).module

    def update(self, network: nn.Module) -> None:
        """One step of the average."""
        self._started(network).update(network)

    def _started(self, network: nn.Module) -> ModelEmaV3:
        from timm.utils import ModelEmaV3  # timm takes two seconds to import

        if self._average is None:
            self._average = ModelEmaV3(network, decay=self.decay, exclude_buffers=not self.statistics)
        if self._loaded is not None:
            self._average.module.load_state_dict(self._loaded)
            self._loaded = None
        return self._average

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; empty before it has begun."""
        if self._loaded is not None:
            return self._loaded
        return dict(self._average.module.state_dict()) if self._average is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, from an empty one as if new."""
        self._loaded = state or None


def recalibrated(
    model: nn.Module, images: Images, *, batch_size: int, device: torch.device | str | None = None
) -> nn.Module:
    """A copy of `model` whose batch statistics are those of `images`, in batches, without augmentation.

    On the model's device where none is named. A last batch of less than a quarter of the others is left out; auxiliary
    heads keep their statistics.
    """
    copied = copy.deepcopy(model)
    examples = Examples(images, batch_size=batch_size, device=device or device_of(model))
    batches = ((x, y) for x, y, _ in examples if 4 * len(x) >= min(examples.batch_size, len(examples)))
    heads = [m.head for m in copied.modules() if isinstance(m, AuxiliaryHead)]
    with draws_undone(), restored(b for head in heads for b in head.buffers()):
        update_bn(batches, copied)
    return copied
