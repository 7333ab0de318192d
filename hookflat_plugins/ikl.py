"""The improved Kullback-Leibler loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Objective, Run, divergence_from_clean, hookimpl


@dataclass(eq=False)
class ImprovedKl:
    """IKL-AT: CE(f(x), y) + alpha CE(p(x), f(x_adv)) + beta / 4 sum_jk s_j s_k (d_j - d_k)^2, with d = f(x) - f(x_adv).

    TRADES's KL in its two parts (DKL), improved: the gradient of the squared differences of logits flows through x
    too, that of the cross-entropy with p(x) does not; and s is no example's prediction, but its class's: the mean of
    softmax(f(x) / T) over the images of that class in the epoch before (1 / K in the first). The sum over pairs is
    2 Var_s(d). Means count every pass of the loss, also at perturbed weights. The attack maximises TRADES's KL.
    """

    paper: ClassVar[str] = "Cui et al. 2023, arXiv 2305.13948, IKL; github.com/jiequancui/DKL, DKLv1"

    alpha: Annotated[Number, Field(ge=0, description="weight of the cross-entropy with p(x)")] = 4.0
    beta: Annotated[Number, Field(ge=0, description="weight of the squared differences")] = 20.0
    temperature: Annotated[Number, Field(gt=0, description="of the classes' mean predictions (T)")] = 4.0

    def __post_init__(self) -> None:
        self._classes: Tensor | None = None  # (K, K): row y is s of class y
        self._sums: Tensor | None = None  # of this epoch's predictions

    @hookimpl
    def attack_objective(self, batch: Batch) -> Objective:
        return divergence_from_clean(batch.x)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        logits, logits_adv = run.model(batch.x), run.model(x_adv)
        s = self._weights(run, logits, batch.y)
        d = logits - logits_adv
        variance = (s * d.square()).sum(dim=1) - (s * d).sum(dim=1).square()
        soft = F.cross_entropy(logits_adv, logits.detach().softmax(dim=1), reduction="none")
        natural = run.criterion(logits, batch.target)
        return (natural + self.alpha * soft + self.beta / 2 * variance).mean()

    @torch.no_grad()
    def _weights(self, run: Run, logits: Tensor, y: Tensor) -> Tensor:
        """(n, K) of the epoch before; this epoch's predictions are added up."""
        count = logits.shape[1]
        if self._classes is None or self._sums is None:
            self._classes, self._sums = logits.new_full((count, count), 1 / count), logits.new_zeros(count, count)
        self._classes, self._sums = self._classes.to(logits), self._sums.to(logits)
        predictions = (logits / self.temperature).softmax(dim=1)
        predictions = predictions.nan_to_num(0.0)  # of a pass that float16 cannot hold, none
        of_class = F.one_hot(y, count).double().T @ predictions.double()  # a GPU's index_add_ has no fixed order
        self._sums += run.accelerator.reduce(of_class.to(self._sums), "sum")
        return self._classes[y]

    @hookimpl
    def epoch_end(self) -> None:
        if self._classes is None or self._sums is None:
            return
        size = self._sums.sum(dim=1, keepdim=True)
        self._classes = torch.where(size > 0, self._sums / size.clamp_min(1e-12), self._classes)
        self._sums = torch.zeros_like(self._sums)

    def state_dict(self) -> dict[str, Any]:
        return {"classes": self._classes, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._classes, self._sums = state["classes"], state["sums"]
