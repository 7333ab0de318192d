"""Adversarial training on what two trained networks say."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hookflat import Batch, Number, Run, hookimpl, teacher_of


@dataclass(eq=False)
class Distillation:
    """KD: hard CE(f(x_adv), y) + T^2 (standard CE(p_s(x_adv), f(x_adv) / T) + robust CE(p_r(x_adv), f(x_adv) / T)).

    p_s and p_r are the softmax at temperature T of two trained networks, one without and one with adversarial training,
    both at this network's adversarial examples. With `swa` it is KD-SWA, a cure for robust overfitting. The attack
    maximises the cross-entropy with the label; the official code's is in training mode (`attack.mode = "train"`).
    """

    paper: ClassVar[str] = "Chen et al. 2021, openreview qZzy5urZw9; github.com/VITA-Group/Alleviate-Robust-Overfitting"

    standard_teacher: Annotated[str, Field(description="folder of a run of the recipe standard")] = "runs/standard-0"
    robust_teacher: Annotated[str, Field(description="folder of a run of the recipe at")] = "runs/at-0"
    which: Annotated[
        Literal["best", "last"],
        Field(description="of a teacher's networks; the last where it kept no best, as standard does"),
    ] = "best"
    hard: Annotated[Number, Field(ge=0, description="weight of the cross-entropy with the target")] = 0.3
    standard: Annotated[Number, Field(ge=0, description="weight of the standard network's term")] = 0.1
    robust: Annotated[Number, Field(ge=0, description="weight of the robust network's term")] = 0.6
    temperature: Annotated[Number, Field(gt=0, description="of all three predictions (T)")] = 2.0

    def __post_init__(self) -> None:
        self._teachers: list[tuple[float, nn.Module]] = []

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Any, Any]:
        standard = teacher_of(run, self.standard_teacher, "loss.standard_teacher", self.which)
        robust = teacher_of(run, self.robust_teacher, "loss.robust_teacher", self.which)
        self._teachers = [(self.standard, standard), (self.robust, robust)]
        return (yield)

    @hookimpl
    def loss(self, run: Run, batch: Batch, x_adv: Tensor) -> Tensor:
        logits, t = run.model(x_adv), self.temperature
        loss = self.hard * run.criterion(logits, batch.target).mean()
        for weight, teacher in self._teachers:
            with torch.no_grad():
                told = (teacher(x_adv) / t).softmax(dim=1)
            loss = loss + weight * t**2 * F.cross_entropy(logits / t, told)
        return loss
