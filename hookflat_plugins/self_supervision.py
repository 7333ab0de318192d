"""Rotation prediction beside the classification."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hookflat import (
    AuxiliaryHead,
    Batch,
    Number,
    Objective,
    Run,
    Share,
    UserError,
    auxiliary_logits,
    cross_entropy,
    he_initialised,
    hookimpl,
    statistics_kept,
)


@dataclass(eq=False)
class SelfSupervision:
    """Self-supervision: plus weight CE(r(x_adv), rotation) on images turned by 0, 90, 180 or 270 degrees.

    r is a second head on the features under the classifier. `share` of every batch gives way to training images drawn
    with replacement and turned by a random angle before any augmentation; the [attack] maximises the rotation loss on
    them. The classifier's loss sees the rest of the batch. Turned images have a pass of their own, which leaves the
    running statistics to the upright ones (the code of Stutz et al. forwards both together). The head takes no part in
    evaluation, flatness or AWP.
    """

    paper: ClassVar[str] = "Hendrycks et al. 2019, arXiv 1906.12340; protocol of Stutz et al. 2021, section 4.3"

    weight: Annotated[Number, Field(ge=0, description="of the rotation loss (lambda; grid 0.5, 1, 2, 4, 8)")] = 4.0
    share: Annotated[Share, Field(gt=0, lt=1, description="of a batch, turned images")] = 0.5
    hidden: Annotated[int, Field(ge=0, description="units of the head's hidden layer; 0: a linear head")] = 256

    def __post_init__(self) -> None:
        self._trunk: list[nn.Module] = []

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        net = yield
        height, width = run.data.train.shape[1:]
        if height != width:
            raise UserError(f"plugins.self_supervision turns square images, not {height} x {width}")
        self._check_batches(run)
        parent, name, classifier = _classifier(net)
        features = classifier.weight.shape[1]
        self._trunk = list(net.modules())
        setattr(parent, name, AuxiliaryHead(classifier, he_initialised(self._head(features))))
        return net

    def _check_batches(self, run: Run) -> None:
        size = run.batch_size
        last = len(run.data.train) % size
        smallest = last if last >= max(size / 4, 2 * run.processes) else size
        turned = int(self.share * smallest)
        upright = smallest - turned
        parts = min(run.recipe.run.accumulation, max(1, upright // run.processes // 2))
        if min(turned, upright) < 2 * run.processes * parts:
            raise UserError(
                f"plugins.self_supervision.share = {self.share:g} leaves less than two turned or two upright images "
                f"for each part of a batch of {smallest} on {run.processes} process(es): set another share, a larger "
                "run.batch_size, or a smaller run.accumulation"
            )

    def _head(self, features: int) -> nn.Module:
        if not self.hidden:
            return nn.Linear(features, 4)
        layers = [nn.Linear(features, self.hidden), nn.ReLU(), nn.BatchNorm1d(self.hidden), nn.Linear(self.hidden, 4)]
        return nn.Sequential(*layers)

    @hookimpl(wrapper=True)
    def transform_batch(self, run: Run, batch: Batch) -> Generator[None, Any, Any]:
        turned = self._split(run, batch)
        result = yield
        run.transform(turned, without=self)  # augmentation
        batch.beside = turned
        return result

    def _split(self, run: Run, batch: Batch) -> Batch:
        """Take the turned images out of the batch, which keeps the other rows."""
        count = int(self.share * batch.global_size)
        first, last = (n * batch.global_size // run.processes for n in (run.rank, run.rank + 1))
        mine = last * count // batch.global_size - first * count // batch.global_size  # known without asking a GPU
        order = batch.interleaved(count).int().argsort(descending=True, stable=True)
        out, kept = order[:mine], order[mine:]
        draws = run.uniform("self_supervision", batch, (2,))[out]
        index = (draws[:, 0] * len(run.data.train)).long()
        x = run.training_images(index)
        angle = (draws[:, 1] * 4).long()
        x = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])[angle, torch.arange(len(x), device=x.device)]
        row = batch.row[out] + batch.global_size  # draws of their own
        turned = Batch(x, angle, angle, index, torch.zeros_like(angle, dtype=torch.bool), row, 2 * batch.global_size)
        position = batch.row - batch.row * count // batch.global_size
        for name in ("x", "y", "target", "index", "labeled"):
            setattr(batch, name, getattr(batch, name)[kept])
        batch.row, batch.global_size = position[kept], batch.global_size - count
        return turned

    @hookimpl(wrapper=True)
    def craft(self, run: Run, batch: Batch) -> Generator[None, Tensor, Tensor]:
        x_adv = yield
        turned = batch.beside
        assert turned is not None
        turned.x.copy_(run.craft(turned, _rotation_loss(turned.y)))  # of the whole batch, whose part this may be
        return x_adv

    @hookimpl
    def extra_loss(self, run: Run, batch: Batch) -> Tensor:
        turned = batch.beside
        assert turned is not None
        with statistics_kept(self._trunk):
            logits = auxiliary_logits(run.model, turned.x)
        mean_count = int(self.share * (turned.global_size // 2)) / run.processes  # a process may hold one more
        return self.weight * cross_entropy(logits, turned.y).sum() / (mean_count * batch.weight(run.processes))


def _rotation_loss(rotation: Tensor) -> Objective:
    return lambda model, x_adv: cross_entropy(auxiliary_logits(model, x_adv), rotation)


def _classifier(net: nn.Module) -> tuple[nn.Module, str, Any]:
    """The layer that gives the logits, with its place: timm's `get_classifier`, else the last linear layer."""
    known: Any = next((m for m in net.modules() if hasattr(m, "get_classifier")), None)
    wanted: Any = known.get_classifier() if known is not None else None
    places = [(m, n, c) for m in net.modules() for n, c in m.named_children()]
    candidates = [place for place in places if isinstance(place[2], nn.Linear) and wanted in (None, place[2])]
    candidates += [place for place in places if isinstance(place[2], nn.Conv2d) and place[2] is wanted]
    if not candidates:
        raise UserError("plugins.self_supervision: the network has no linear classifier to put a second head beside")
    return candidates[-1]
