"""Gradients that agree inside the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import (
    Batch,
    InnerAttack,
    Number,
    Run,
    UserError,
    cross_entropy,
    hookimpl,
    statistics_kept,
    twice_differentiable,
)


@dataclass(eq=False)
class GradAlign:
    """GradAlign: weight (1 - cos(grad l(x), grad l(x + eta))) is added, eta uniform in the ball of the attack.

    x + eta is not cut to [0, 1]. l is the cross-entropy with the label, in training mode; the mean is over the examples
    of one pass where no gradient vanishes. The penalty's own gradient flows through the one at x + eta alone, as in the
    official code of FGSM training, where the one at x is the attack's. Running statistics do not follow its two passes
    (there they do).
    """

    paper: ClassVar[str] = "Andriushchenko and Flammarion 2020, arXiv 2007.02617, Eq. 8"
    off: ClassVar[dict[str, Any]] = {"weight": 0}

    weight: Annotated[Number, Field(ge=0, description="of the penalty (lambda; 0.2 at eps = 8/255)")] = 0.2

    @hookimpl
    def extra_loss(self, run: Run, batch: Batch) -> Tensor | None:
        attack = run.recipe.slots["attack"]
        if not isinstance(attack, InnerAttack):
            raise UserError("plugins.grad_align: the plugin in [attack] has no ball to draw from: use pgd or its like")
        if self.weight == 0:
            return None
        self._check(run)
        grey = torch.full_like(batch.x, 0.5)  # around which the cube [0, 1] cuts nothing off a ball of eps up to 0.5
        eta = attack.attack().threat.ball(grey).start("uniform", batch.row, run.seed("grad_align")) - grey
        with torch.enable_grad(), twice_differentiable(), statistics_kept(run.network.modules()):
            at_x = self._gradient(run, batch.x, batch.y).detach()
            at_noisy = self._gradient(run, batch.x + eta, batch.y)
        cosine = F.cosine_similarity(at_x.flatten(1), at_noisy.flatten(1))
        both = at_x.flatten(1).any(dim=1) & at_noisy.flatten(1).any(dim=1)
        return self.weight * ((1 - cosine) * both).sum() / both.sum().clamp_min(1)

    def _check(self, run: Run) -> None:
        options = run.recipe.run
        if options.compile:
            raise UserError(
                "plugins.grad_align needs second derivatives, which torch.compile has not: run.compile = false"
            )
        if options.precision == "fp16":
            raise UserError("plugins.grad_align: gradients of images vanish in float16; use run.precision = bf16")

    def _gradient(self, run: Run, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(run.model(x), y).sum(), x, create_graph=True)
        return gradient
