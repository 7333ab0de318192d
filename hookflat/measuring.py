"""Measures in a run: what is measured, on which examples, and what is recorded about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from hookflat.data import Examples
from hookflat.errors import UserError
from hookflat.evaluation import RobustLoss, robust_loss
from hookflat.options import as_table
from hookflat.plugins import Hooks

if TYPE_CHECKING:
    from hookflat.recipe import Stage
    from hookflat.running import Run


@dataclass
class Subject:
    """What a measure gets: a network and the examples of one split.

    `eps`, `step_size`: of the evaluation (`[eval]`). `seed`: for every random number of the measure.
    """

    model: nn.Module
    split: str
    examples: Examples
    num_classes: int
    eps: float
    step_size: float
    seed: int
    _robust: dict[tuple[int, int], RobustLoss] = field(default_factory=dict, repr=False)

    def robust(self, steps: int, restarts: int) -> RobustLoss:
        """RLoss and RErr by PGD, computed once for each (steps, restarts), however many measures ask."""
        if (steps, restarts) not in self._robust:
            self._robust[steps, restarts] = robust_loss(
                self.model,
                self.examples,
                eps=self.eps,
                step_size=self.step_size,
                steps=steps,
                restarts=restarts,
                seed=self.seed,
            )
        return self._robust[steps, restarts]


class Measurements:
    """The `[eval]` of one run: calls measures on a model, remembers protocol and wall time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        recipe = run.recipe
        self.hooks = {stage: Hooks(measures) for stage, measures in recipe.measures.items()}
        self.during = {n: s for n, s in recipe.stages.items() if s.every is not None}
        self.final = {n: s for n, s in recipe.stages.items() if s.every is None}

    def subject(self, model: nn.Module, split: str, examples: int) -> Subject:
        """`model` with the first `examples` of a split."""
        run, options = self.run, self.run.recipe.eval
        images = getattr(run.data, split).part(0, examples)
        batches = Examples(images, batch_size=options.batch_size, device=run.device, accelerator=run.accelerator)
        return Subject(model, split, batches, run.data.num_classes, options.eps, options.step_size, run.recipe.run.seed)

    def stage(self, name: str, stage: Stage, subjects: dict[str, Subject]) -> dict[str, dict[str, Any]]:
        """Values of every measure of a stage, by split; the key "seconds" holds the wall time of each measure."""
        measures = self.run.recipe.measures[name]
        found: dict[str, dict[str, Any]] = {}
        for split in stage.splits:
            values: dict[str, Any] = {}
            seconds: dict[str, float] = {}
            for measure, plugin in measures.items():
                others = [p for p in measures.values() if p is not plugin]
                call = self.hooks[name].manager.subset_hook_caller("measure", others)
                began = time.perf_counter()
                for answer in call(subject=subjects[split]):
                    if clash := answer.keys() & values.keys():
                        raise UserError(f"[eval.{name}]: two measures return {', '.join(sorted(clash))!r}")
                    values |= answer
                seconds[measure] = round(time.perf_counter() - began, 3)
            found[split] = {"values": values, "seconds": seconds}
        return found

    def end(self, model: nn.Module) -> dict[str, Any]:
        """The results of all final stages for one model: by split, the gaps (test minus train), and seconds."""
        entry: dict[str, Any] = {"seconds": {}}
        shared: dict[tuple[str, int], Subject] = {}
        for name, stage in self.final.items():
            subjects: dict[str, Subject] = {}
            for split in stage.splits:
                key = (split, stage.examples)
                shared[key] = subjects[split] = shared.get(key) or self.subject(model, split, stage.examples)
            for split, result in self.stage(name, stage, subjects).items():
                if clash := entry.setdefault(split, {}).keys() & result["values"].keys():
                    raise UserError(f"[eval]: two stages measure {', '.join(sorted(clash))!r} on {split}")
                entry[split] |= result["values"]
                entry["seconds"] |= {f"{split}/{m}": s for m, s in result["seconds"].items()}
        both = entry.get("train", {}).keys() & entry.get("test", {}).keys()
        entry["gap"] = {key: entry["test"][key] - entry["train"][key] for key in sorted(both)}
        return entry

    def protocol(self) -> dict[str, Any]:
        """How the final numbers are measured: every option, the examples really there, the seed."""
        recipe, data = self.run.recipe, self.run.data
        return {
            "eps": recipe.eval.eps,
            "step_size": recipe.eval.step_size,
            "seed": recipe.run.seed,
            "stages": {
                name: {
                    "examples": {s: min(stage.examples, len(getattr(data, s))) for s in stage.splits},
                    "measures": {m: as_table(p) for m, p in recipe.measures[name].items()},
                }
                for name, stage in self.final.items()
            },
        }
