"""Measures: what is measured, on which examples, in which order, and what is recorded about it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hookflat.errors import UserError
from hookflat.functional.data import Examples
from hookflat.functional.robustness import RobustLoss, robust_loss
from hookflat.functional.seeds import fingerprint
from hookflat.functional.work import Tally, Work
from hookflat.recipe.catalogue import Hooks
from hookflat.recipe.options import as_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hookflat.recipe.loading import Stage
    from hookflat.training.run import Run


Planned = tuple[str, str, str, int]
"""Stage, split, measure, passes of examples through the network on this process."""


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
    root: Work = field(default_factory=Work, repr=False)
    kept: list[tuple[str, Any]] = field(default_factory=list, repr=False)
    _robust: dict[tuple[int, int], RobustLoss] = field(default_factory=dict, repr=False)

    @property
    def attack(self) -> dict[str, Any]:
        """`eps`, `step_size` and `seed`, as the library's functions take them."""
        return {"eps": self.eps, "step_size": self.step_size, "seed": self.seed}

    def robust(self, steps: int, restarts: int) -> RobustLoss:
        """RLoss and RErr by PGD, computed once for each (steps, restarts), however many measures ask."""
        if (steps, restarts) not in self._robust:
            work = self.work(f"robust loss {steps} {restarts}")
            self._robust[steps, restarts] = robust_loss(
                self.model, self.examples, steps=steps, restarts=restarts, work=work, **self.attack
            )
        return self._robust[steps, restarts]

    def work(self, name: str) -> Work:
        """For the library's functions: what an interrupted measure had finished, under a name of the measure's own."""
        return self.root.part(name)

    def keep(self, name: str, what: str | Figure | dict[str, Tensor]) -> None:
        """Put a file beside the results: a text, a figure (as PNG and SVG), a table of columns (as parquet)."""
        self.kept.append((name, what))


class Measurements:
    """The `[eval]` of one run: calls measures on a model, remembers protocol and wall time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        recipe = run.recipe
        self.hooks = {stage: Hooks(measures) for stage, measures in recipe.measures.items()}
        self.during = {n: s for n, s in recipe.stages.items() if s.every is not None}
        self.final = {n: s for n, s in recipe.stages.items() if s.every is None}
        self.tally = Tally()

    def subject(self, model: nn.Module, split: str, examples: int, work: Work | None = None) -> Subject:
        """`model` with the first `examples` of a split."""
        run, options = self.run, self.run.recipe.eval
        images = getattr(run.data, split).part(0, examples)
        batches = Examples(images, batch_size=options.batch_size, device=run.device, accelerator=run.accelerator)
        threat = (options.eps, options.step_size, run.recipe.run.seed)
        return Subject(model, split, batches, run.data.num_classes, *threat, root=work or Work())

    def stage(
        self, name: str, stage: Stage, subjects: dict[str, Subject], *, final: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Values of every measure of a stage, by split; the key "seconds" holds the wall time of each measure."""
        measures = self.run.recipe.measures[name]
        found: dict[str, dict[str, Any]] = {}
        for split in stage.splits:
            values: dict[str, Any] = {}
            seconds: dict[str, float] = {}
            for measure, plugin in measures.items():
                others = [p for p in measures.values() if p is not plugin]
                call = self.hooks[name].manager.subset_hook_caller("measure", others)
                began, before = time.perf_counter(), self.tally.seconds_before
                for answer in call(subject=subjects[split]):
                    if clash := answer.keys() & values.keys():
                        raise UserError(f"[eval.{name}]: two measures return {', '.join(sorted(clash))!r}")
                    values |= answer
                seconds[measure] = round(time.perf_counter() - began + self.tally.seconds_before - before, 3)
                if final:
                    self.run.console.measured(self.tally, seconds[measure])
            found[split] = {"values": values, "seconds": seconds}
        return found

    def end(self, model: nn.Module, label: str) -> dict[str, Any]:
        """The results of the final stages that want the model `label`: by split, the gaps (test minus train), seconds.

        What an interrupted call had finished is not measured again.
        """
        entry: dict[str, Any] = {"seconds": {}}
        shared: dict[tuple[str, int], Subject] = {}
        unfinished = self._unfinished(model, label)
        for name, stage in self._wanted(label).items():
            subjects: dict[str, Subject] = {}
            for split in stage.splits:
                key = (split, stage.examples)
                if key not in shared:
                    part = unfinished.part(f"{split} {stage.examples}")
                    shared[key] = self.subject(model, split, stage.examples, part)
                subjects[split] = shared[key]
            for split, result in self.stage(name, stage, subjects, final=True).items():
                if clash := entry.setdefault(split, {}).keys() & result["values"].keys():
                    raise UserError(f"[eval]: two stages measure {', '.join(sorted(clash))!r} on {split}")
                entry[split] |= result["values"]
                entry["seconds"] |= {f"{split}/{m}": s for m, s in result["seconds"].items()}
        both = sorted(entry.get("train", {}).keys() & entry.get("test", {}).keys())
        entry["gap"] = {k: entry["test"][k] - entry["train"][k] for k in both if not k.endswith("_stderr")}
        for (split, _), subject in shared.items():
            for kept, what in subject.kept:
                self.run.folder.keep(f"{label}-{split}-{kept}", what)
        self.run.accelerator.wait_for_everyone()  # nobody writes parts any more
        return entry

    def _unfinished(self, model: nn.Module, label: str) -> Work:
        """Where the parts of an interrupted measurement of this model, by this protocol, are found again."""
        run = self.run
        tensors = [t.detach().cpu() for t in model.state_dict().values()]
        name = fingerprint(json.dumps(self.protocol()), self.setting(), *tensors)
        mine = f"{run.rank} of {run.processes}"
        return Work(run.folder.unfinished / f"{label} {name}" / mine, self.tally)

    def setting(self) -> str:
        """A fingerprint of what is measured but for the weights: architecture and images."""
        tables, data = self.run.recipe.tables, self.run.data
        named = json.dumps([tables.get(name) for name in ("data", "model", "plugins")])
        return fingerprint(named, *(t for part in (data.train, data.test) for t in (part.x, part.y)))

    def planned(self, label: str) -> list[Planned]:
        """Everything `end` will do for a network, with the passes that the measures expect (their `passes()`)."""
        plan: list[Planned] = []
        for name, stage in self._wanted(label).items():
            for split in stage.splits:
                examples = min(stage.examples, len(getattr(self.run.data, split)))
                for measure, plugin in self.run.recipe.measures[name].items():
                    expected = getattr(plugin, "passes", lambda: 1)()
                    plan.append((name, split, measure, examples * expected // self.run.processes))
        return plan

    def _wanted(self, label: str) -> dict[str, Stage]:
        """The final stages for a network; those that are neither the last nor the best have all."""
        return {n: s for n, s in self.final.items() if label in s.models or label not in ("last", "best")}

    def protocol(self) -> dict[str, Any]:
        """How the final numbers are measured: every option, the examples really there, the seed."""
        recipe, data = self.run.recipe, self.run.data
        return {
            "eps": recipe.eval.eps,
            "step_size": recipe.eval.step_size,
            "batch_size": recipe.eval.batch_size,
            "seed": recipe.run.seed,
            "stages": {
                name: {
                    "examples": {s: min(stage.examples, len(getattr(data, s))) for s in stage.splits},
                    "measures": {m: as_table(p) for m, p in recipe.measures[name].items()},
                }
                for name, stage in self.final.items()
            },
        }
