"""Labels rectified by an average of the network itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Decay, MovingAverage, Number, Objective, Run, Share, cross_entropy, hookimpl


@dataclass(eq=False)
class AnnealingSelfDistillation:
    """ADR: the target becomes lambda p + (1 - lambda) one-hot, p the prediction of a moving average of the network.

    p is the softmax at a temperature of its logits on the clean, augmented image; lambda is cut by p's error there, to
    lambda - (max_k p_k - p_y), and to [0, 1]. Temperature and lambda go from their first to their last value along half
    a cosine. The attack maximises the cross-entropy with the rectified target, as in the official code, unless the loss
    has an objective of its own (TRADES). Weights and running statistics are averaged after every step. Put this table
    below augmentations, and `averaging` beside it to save an average too. Decay and end points are the official
    configuration's for CIFAR-10; with AWP it ends at temperature 1.5 and lambda 0.85. The official code attacks in
    training mode (`attack.mode = "train"`), so that attacks move the running statistics that are averaged, too.
    """

    paper: ClassVar[str] = "Wu et al. 2023, arXiv 2305.12118, Alg. 1; github.com/yuyuwu5/ADR"
    kind: ClassVar[str] = "regularizer"
    excludes: ClassVar[dict[str, str]] = {
        "prevent_label_leaking": "both say what the attack maximises; use one",
    }

    decay: Annotated[Decay, Field(description="of the average that teaches, at each step (gamma)")] = 0.995
    temperature: Annotated[Number, Field(gt=0, description="at first")] = 2.5
    last_temperature: Annotated[Number, Field(gt=0, description="at last")] = 2.0
    share: Annotated[Share, Field(description="of the average's prediction in the target at first (lambda)")] = 0.7
    last_share: Annotated[Share, Field(description="at last")] = 0.95

    def __post_init__(self) -> None:
        self._teacher = MovingAverage(self.decay)

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Any:
        optimizer = yield
        self._teacher.of(run.network)  # it begins with the weights before the first step
        return optimizer

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        with torch.no_grad():
            logits = self._teacher.of(run.network)(batch.x)
        batch.target = self.rectified(logits, batch.target, run.step / run.total_steps)

    def rectified(self, logits: Tensor, target: Tensor, progress: float) -> Tensor:
        """(n, K) distributions from the average's logits and the labels (n,) or distributions (n, K)."""
        weight = (1 + math.cos(math.pi * progress)) / 2
        temperature = self.last_temperature + weight * (self.temperature - self.last_temperature)
        share = self.last_share + weight * (self.share - self.last_share)
        p = (logits / temperature).softmax(dim=1)
        hard = target if target.is_floating_point() else F.one_hot(target, p.shape[1]).to(p)
        error = p.amax(dim=1) - p.gather(1, hard.argmax(dim=1, keepdim=True)).squeeze(1)
        cut = (share - error).clamp(0, 1)[:, None]
        return cut * p + (1 - cut) * hard

    @hookimpl
    def attack_objective(self, run: Run, batch: Batch) -> Objective | None:
        if run.objective_of_loss(batch) is not None:
            return None
        return lambda model, x_adv: cross_entropy(model(x_adv), batch.target)

    @hookimpl
    def after_step(self, run: Run) -> None:
        self._teacher.update(run.network)

    def state_dict(self) -> dict[str, Any]:
        return self._teacher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._teacher.load_state_dict(state)
