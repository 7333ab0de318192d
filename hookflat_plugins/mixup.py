"""Images and labels mixed: mixup and CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hookflat import Batch, Number, Objective, Run, Share, cross_entropy, hookimpl


@dataclass(eq=False)
class Mixup:
    """Mixup, lambda x + (1 - lambda) x', or CutMix, a box of x' in x of 1 - lambda of its area; labels are mixed alike.

    One of the two a batch, and one lambda, of Beta(alpha, alpha); CutMix's box may leave the image, and lambda counts
    what is left of it. x' is the neighbour in the batch, whose order is random: rows 0 and 1, 2 and 3 ... The attack
    maximises the cross-entropy with the mixed target, unless the loss has an objective of its own (TRADES). For what
    asks for one label (MART's margin, pseudo-labels) that is the one of the larger share. List it last of what changes
    images.
    """

    paper: ClassVar[str] = (
        "Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899; under attack as Singh et al. 2023"
    )
    kind: ClassVar[str] = "regularizer"
    off: ClassVar[dict[str, Any]] = {"mixup": 0, "cutmix": 0}
    excludes: ClassVar[dict[str, str]] = {
        "prevent_label_leaking": "both say what the attack maximises; use one",
        "self_supervision": "turned images would be mixed, and no longer be turned by one angle",
    }

    mixup: Annotated[Number, Field(ge=0, description="alpha of mixup; 0: CutMix alone")] = 0.8
    cutmix: Annotated[Number, Field(ge=0, description="alpha of CutMix; 0: mixup alone")] = 1.0
    switch: Annotated[Share, Field(description="probability of CutMix, where both are on")] = 0.5

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if not (self.mixup or self.cutmix):
            return
        random = np.random.default_rng(run.seed("mixup"))  # the same on every process
        cuts = random.random() < (self.switch if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = self.cutmix if cuts else self.mixup
        share = float(random.beta(alpha, alpha))
        partner = neighbours(batch.row)
        if cuts:
            box, share = box_of(share, random.random(2), *batch.x.shape[2:])
            batch.x = batch.x.clone()
            batch.x[:, :, *box] = batch.x[partner][:, :, *box]
        else:
            batch.x = share * batch.x + (1 - share) * batch.x[partner]
        target = distributions(batch.target, run.data.num_classes)
        batch.target = share * target + (1 - share) * target[partner]
        batch.y = batch.y if share >= 0.5 else batch.y[partner]
        batch.labeled = batch.labeled & batch.labeled[partner]

    @hookimpl
    def attack_objective(self, run: Run, batch: Batch) -> Objective | None:
        if run.objective_of_loss(batch) is not None or not batch.target.is_floating_point():
            return None
        return lambda model, x_adv: cross_entropy(model(x_adv), batch.target)


def neighbours(row: Tensor) -> Tensor:
    """(n,) place of the example whose row is the even or odd other one; its own where that is on another process."""
    place = torch.arange(len(row), device=row.device)
    other = place + 1 - 2 * (row % 2)
    return torch.where((other >= 0) & (other < len(row)), other, place)


def distributions(target: Tensor, classes: int) -> Tensor:
    """(n, K) of labels (n,) or distributions (n, K)."""
    return target if target.is_floating_point() else F.one_hot(target, classes).float()


def box_of(share: float, centre: np.ndarray, height: int, width: int) -> tuple[tuple[slice, slice], float]:
    """A box of 1 - share of an image around a centre ((2,) in [0, 1)), cut at the rim, and the share that it leaves."""
    edges = []
    for size, at in ((height, centre[0]), (width, centre[1])):
        side, middle = int(size * (1 - share) ** 0.5), int(at * size)
        edges.append(slice(max(0, middle - side // 2), min(size, middle + (side + 1) // 2)))
    area = (edges[0].stop - edges[0].start) * (edges[1].stop - edges[1].start)
    return (edges[0], edges[1]), 1 - area / (height * width)
