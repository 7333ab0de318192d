"""Why a training cannot go on: the hook whose result is not finite, and the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hookflat.errors import TrainingFailed
from hookflat.functional.brackets import restored
from hookflat.training.finite import first_layer
from hookflat.training.passes import Compiled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hookflat.functional.data import Batch
    from hookflat.recipe.recipe import Recipe
    from hookflat.records.folder import RunFolder


class Halted(Protocol):
    """What is needed of a run, which imports this module."""

    recipe: Recipe
    network: nn.Module
    model: nn.Module
    folder: RunFolder
    last: tuple[Batch, Tensor] | None
    total_steps: int
    steps_per_epoch: int

    def loss_and_gradients(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Its passes."""
        ...


def not_finite(run: Halted, step: int, hook: str, plugin: str) -> TrainingFailed:
    """What to say of the first result that was not finite; every process calls it."""
    slot = {"craft": "attack", "loss": "loss"}.get(hook)
    plugin = run.recipe.slot_names[slot] if slot else plugin
    culprit = f" (plugin {plugin!r})" if plugin else ""
    layer, kept = first_place(run, hook), run.folder.last_checkpoint()
    return TrainingFailed(
        f"not finite: the result of hook {hook!r}{culprit} in step {step + 1} of {run.total_steps} "
        f"(epoch {step // run.steps_per_epoch + 1})"
        + (f"; first {layer}" if layer else "")
        + (f"; the last good checkpoint stays: {kept}" if kept else "")
    )


def first_place(run: Halted, hook: str) -> str | None:
    """Where in the network values stop being finite: in the weights, or in the last batch's passes; of any process."""
    from accelerate.utils import gather_object

    seen = (
        run.network.named_parameters()
        if hook in ("loss", "extra_loss", "gradients")
        else run.network.state_dict().items()
    )
    here = next((f"the values of {name!r}" for name, value in seen if not value.isfinite().all()), None)
    if here is None and run.last is not None and hook in ("craft", "loss", "extra_loss", "gradients"):
        batch, x_adv = run.last
        here = first_layer(run.network, lambda: _again(run, batch, batch.x if hook == "craft" else x_adv))
    return next((place for place in gather_object([here]) if place), None)


def _again(run: Halted, batch: Batch, x_adv: Tensor) -> None:
    """The passes of the last step."""
    for module in run.model.modules():
        if isinstance(module, Compiled):
            module.plain()  # a compiled network does not call its layers
    with restored(run.network.buffers()):
        run.loss_and_gradients(batch, x_adv)
