"""Free adversarial training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hookflat import Batch, InnerAttack, Number, Run, hookimpl


@dataclass(eq=False)
class Free(InnerAttack):
    """Free AT: every batch is trained on `replays` times, and each backward pass moves weights and images at once.

    delta <- project(delta + step_size direction) along the gradient of the training loss that moves the weights, no
    objective of its own, at the weights before that move (perturbed ones under AWP and its like). delta starts at zero
    and goes on from batch to batch, by an example's place in it, cut to [0, 1] around the new image (the code of
    locuslab cuts it after that image's first pass). No pass is the attack's alone, so a step costs a standard one, and
    an epoch holds 1 / `replays` of the images: `[run] epochs` stays what it would be without replays. `steps`, `start`,
    `mode`, `precision` and `compile` play no part.
    """

    paper: ClassVar[str] = (
        "Shafahi et al. 2019, arXiv 1904.12843, Alg. 1; github.com/ashafahi/free_adv_train, as in "
        "github.com/locuslab/fast_adversarial"
    )
    excludes: ClassVar[dict[str, str]] = {
        "prevent_label_leaking": "free AT's images follow the gradient of the training loss, which has the true label",
        "self_supervision": "free AT has one delta for a batch, and turned images would need one of their own",
    }

    alpha: Annotated[Number, Field(ge=0, description="length of a step in units of eps; 0: step_size")] = 1.0
    replays: Annotated[int, Field(ge=1, description="of every batch (m)")] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._held: dict[str, Tensor] = {}  # of the whole batch, as the deltas: a process takes its part
        self._delta: Tensor | None = None

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if run.step % self.replays == 0 or not self._held:
            own = {field.name: getattr(batch, field.name) for field in fields(batch)}
            tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
            self._held = {name: run.accelerator.gather(value) for name, value in tensors.items()}
        share = len(self._held["row"]) // run.processes
        for name, value in self._held.items():
            setattr(batch, name, value[run.rank * share : (run.rank + 1) * share].to(run.device))
        batch.global_size = share * run.processes

    @hookimpl
    def craft(self, batch: Batch) -> Tensor:
        return self.attack().threat.ball(batch.x).project(batch.x + self._deltas(batch)[batch.row])

    def _deltas(self, batch: Batch) -> Tensor:
        """One for each place in the global batch: zeros where no example was yet."""
        known = batch.x[:0] if self._delta is None else self._delta.to(batch.x)
        more = max(0, batch.global_size - len(known))
        return torch.cat([known, known.new_zeros(more, *known.shape[1:])])

    @hookimpl(wrapper=True, tryfirst=True)
    def gradients(self, run: Run, batch: Batch, x_adv: Tensor) -> Generator[None, Tensor, Tensor]:
        x_adv.requires_grad_()
        x_adv.grad = None
        try:
            loss = yield
            gradient = x_adv.grad
        finally:
            x_adv.requires_grad_(False)
            x_adv.grad = None
        if gradient is not None:
            attack = self.attack()
            ball = attack.threat.ball(batch.x)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # where float16 overflows, the pixel stays
            delta = ball.project(x_adv + attack.step_size * ball.ascent(gradient, x_adv)) - batch.x
            delta = run.accelerator.gather(delta)
            self._delta = torch.cat([delta, self._deltas(batch)[len(delta) :]])  # a smaller batch leaves the others'
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"held": self._held, "delta": self._delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._held, self._delta = state["held"], state["delta"]
