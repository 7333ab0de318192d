"""A second network that trains beside the first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hookflat.functional.brackets import draws_undone
from hookflat.training.run import Run


class Companion:
    """A network, optimizer and schedule of the recipe's own slots, with weights of their own.

    For plugins that learn from a network that learns, too; made in `build_optimizer`. Other plugins do not see it: no
    other activation, no weight perturbation, no average, no measure. `network` is in training mode; each process
    normalises by its own part of a batch.
    """

    def __init__(self, run: Run, name: str) -> None:
        """`name` seeds the weights, the same on every process."""
        self._run, slots = run, run.recipe.slots
        with draws_undone():
            torch.manual_seed(run.seed(name))
            self.network = run.hooks.only("build_model", slots["model"])(run=run).to(run.device).train()
        parameters = list(self.network.parameters())
        self._optimizer = run.hooks.only("build_optimizer", slots["optimizer"])(run=run, parameters=parameters)
        self._schedule = run.hooks.only("build_schedule", slots["schedule"])(run=run, optimizer=self._optimizer)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, a mean over this process's part of the batch, then of the schedule."""
        self._optimizer.zero_grad()
        loss.backward()
        self._run.average_over_processes([p.grad for p in self.network.parameters() if p.grad is not None])
        self._optimizer.step()
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self._optimizer, "schedule": self._schedule}
