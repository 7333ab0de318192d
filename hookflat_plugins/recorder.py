"""A plugin that does nothing but write down what it is given."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from hookflat import Batch, Run, hookimpl


@dataclass(eq=False)
class Recorder:
    """Writes down every hook call of the training with the shapes of its tensors, to see the loop at work."""

    kind: ClassVar[str] = "tool"

    file: Annotated[str, Field(description="in the run's folder, one JSON list a line")] = "hooks.jsonl"

    def _note(self, run: Run, hook: str, **arguments: Any) -> None:
        if run.main:
            with (run.folder.path / self.file).open("a", encoding="utf-8") as file:
                file.write(json.dumps([hook, run.step, {k: _shape(v) for k, v in arguments.items()}]) + "\n")

    @hookimpl(wrapper=True)
    def build_data(self, run: Run) -> Generator[None, Any, Any]:
        self._note(run, "build_data")
        return (yield)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, Any, Any]:
        self._note(run, "build_model")
        return (yield)

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run, parameters: Any) -> Generator[None, Any, Any]:
        self._note(run, "build_optimizer", parameters=parameters)
        return (yield)

    @hookimpl(wrapper=True)
    def build_schedule(self, run: Run) -> Generator[None, Any, Any]:
        self._note(run, "build_schedule")
        return (yield)

    @hookimpl
    def transform_batch(self, run: Run, batch: Batch) -> None:
        self._note(run, "transform_batch", x=batch.x, target=batch.target)

    @hookimpl
    def attack_objective(self, run: Run) -> None:
        self._note(run, "attack_objective")

    @hookimpl(wrapper=True)
    def craft(self, run: Run) -> Generator[None, Any, Any]:
        self._note(run, "craft")
        return (yield)

    @hookimpl(wrapper=True)
    def gradients(self, run: Run, x_adv: Tensor) -> Generator[None, Any, Any]:
        self._note(run, "gradients", x_adv=x_adv)
        return (yield)

    @hookimpl(wrapper=True)
    def loss(self, run: Run, x_adv: Tensor) -> Generator[None, Any, Any]:
        self._note(run, "loss", x_adv=x_adv)
        return (yield)

    @hookimpl
    def extra_loss(self, run: Run) -> None:
        self._note(run, "extra_loss")

    @hookimpl
    def criterion(self, run: Run, logits: Tensor, target: Tensor) -> None:
        self._note(run, "criterion", logits=logits, target=target)

    @hookimpl
    def after_step(self, run: Run) -> None:
        self._note(run, "after_step")

    @hookimpl
    def epoch_end(self, run: Run) -> None:
        self._note(run, "epoch_end")

    @hookimpl
    def eval_model(self, run: Run) -> None:
        self._note(run, "eval_model")

    @hookimpl
    def draw(self, run: Run) -> None:
        self._note(run, "draw")


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else len(value)
