"""Measures: what is measured, on which examples, in which order, and what is recorded about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from hookflat.errors import TrainingFailed, UserError
from hookflat.functional.brackets import full_float32
from hookflat.functional.data import Data
from hookflat.functional.examples import Examples
from hookflat.functional.seeds import fingerprint
from hookflat.functional.threats import Threat
from hookflat.functional.work import Tally, Work
from hookflat.recipe.options import as_table
from hookflat.recipe.recipe import Recipe, Stage
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import Quantity, is_error_of
from hookflat.records.results import NetworkResults, Protocol, StageProtocol
from hookflat.training.as_found import checked_numbers, left_as_found
from hookflat.training.hooks import Hooks
from hookflat.training.launch import agreed
from hookflat.training.set_aside import set_aside
from hookflat.training.subject import Subject

if TYPE_CHECKING:
    from accelerate import Accelerator

Planned = tuple[str, str, str, int]
"""Stage, split, measure, passes of examples through the network on this process."""

Take = Literal["first", "last"]

Subjects = dict[tuple[str, int, Take], Subject]
"""Of one network, by split and choice of examples: stages that share them share what is measured on them."""

Kept = tuple[str, Any, dict[str, Any]]
"""A file beside the results: its name, what is in it, what is known about that."""

Done = Callable[[Tally, float], None]
"""Told after each measure of a final stage: the tally, and the measure's seconds."""


def quantities(recipe: Recipe) -> dict[str, Quantity]:
    """What every number of the recipe's measures is, as they declare it (their `numbers()`).

    Raises TrainingFailed for a declaration that is none.
    """
    declared: dict[str, Quantity] = {}
    for measures in recipe.measures.values():
        for name, plugin in measures.items():
            try:
                numbers = getattr(plugin, "numbers", dict)()
            except Exception as error:
                raise TrainingFailed(f"measure {name!r}, numbers(): {type(error).__name__}: {error}") from error
            if not isinstance(numbers, dict) or not all(isinstance(q, Quantity) for q in numbers.values()):
                raise TrainingFailed(f"measure {name!r}, numbers(): should give a hookflat.Quantity for each name")
            declared |= numbers
    return declared


@dataclass
class Measurements:
    """The `[eval]` of one run: calls measures on a model, remembers protocol and wall time."""

    recipe: Recipe
    data: Data
    accelerator: Accelerator
    folder: RunFolder
    hooks: dict[str, Hooks]
    """Of each stage."""
    tally: Tally = field(default_factory=Tally)
    _ended: dict[tuple[str, tuple[str, ...]], tuple[dict[str, Any], list[Kept]]] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)
    """The parameters with which the training began, by name."""

    def __post_init__(self) -> None:
        with full_float32():  # as it will measure
            self.precision = agreed(self.recipe.eval.precision, self.accelerator)
        for measure in (plugin for measures in self.recipe.measures.values() for plugin in measures.values()):
            getattr(measure, "check", lambda data: None)(self.data)  # before anything is trained

    def begin(self, network: nn.Module) -> None:
        """The training begins with these weights."""
        self.start = set_aside(network.named_parameters())

    def during(self) -> dict[str, Stage]:
        """The stages through the training."""
        return {n: s for n, s in self.recipe.stages.items() if s.every is not None}

    def subject(
        self, model: nn.Module, split: str, examples: int | None = None, take: Take = "first", work: Work | None = None
    ) -> Subject:
        """`model` with the first or last `examples` of "train", "test" or "holdout"; all where nothing is said."""
        options, whole = self.recipe.eval, len(getattr(self.data, split))
        images = self.data.taken(split, whole if examples is None else examples, take)
        device = self.accelerator.device
        batches = Examples(images, batch_size=options.batch_size, device=device, accelerator=self.accelerator)
        threat, seed, precision = Threat(options.eps, options.norm), self.recipe.run.seed, self.precision
        return Subject(
            model,
            split,
            batches,
            self.data.num_classes,
            threat,
            options.step_size,
            seed,
            precision,
            self.start,
            work or Work(),
        )

    def subjects(
        self, model: nn.Module, stage: Stage, shared: Subjects, work: Work | None = None
    ) -> dict[str, Subject]:
        """`model` with the examples of each split of a stage; `shared`: with those of the stages before, and after."""
        subjects = {}
        for split in stage.splits:
            key = split, stage.examples, stage.take
            if key not in shared:
                shared[key] = self.subject(model, *key, work.part(" ".join(map(str, key))) if work else None)
            subjects[split] = shared[key]
        return subjects

    def size(self, split: str, stage: Stage) -> int:
        """How many examples of a split a stage has."""
        return len(self.data.taken(split, stage.examples, stage.take))

    def stage(self, name: str, subjects: Mapping[str, Subject], done: Done | None = None) -> dict[str, dict[str, Any]]:
        """Values of every measure of a stage, by split; the key "seconds" holds the wall time of each measure.

        On the splits of `subjects`.
        """
        measures = self.recipe.measures[name]
        results: dict[str, dict[str, Any]] = {}
        for split in subjects:
            values: dict[str, Any] = {}
            seconds: dict[str, float] = {}
            for measure, plugin in measures.items():
                began, before = time.perf_counter(), self.tally.seconds_before
                with full_float32(), left_as_found(subjects[split].model, measure):
                    answers = self.hooks[name].only("measure", plugin)(subject=subjects[split])
                for answer in (checked_numbers(answer, measure) for answer in answers):
                    if clash := answer.keys() & values.keys():
                        raise UserError(f"[eval.{name}]: two measures return {', '.join(sorted(clash))!r}")
                    values |= answer
                seconds[measure] = round(time.perf_counter() - began + self.tally.seconds_before - before, 3)
                if done:
                    done(self.tally, seconds[measure])
            results[split] = {"values": values, "seconds": seconds}
        return results

    def end(self, model: nn.Module, label: str, done: Done | None = None, /, **about: Any) -> NetworkResults:
        """The numbers of the final stages that want the model `label`, with what is known `about` it.

        What an interrupted call had finished is not measured again, nor are weights that were, by the same stages: the
        best network may be the last.
        """
        weights = fingerprint(*(t.detach().cpu() for t in model.state_dict().values()))
        about |= {"weights": weights}
        known = weights, tuple(self.wanted(label))
        if known in self._ended:
            return self._again(label, *self._ended[known], about, done)
        measured: dict[str, dict[str, float]] = {"test": {}, "train": {}}
        took: dict[str, float] = {}
        shared: Subjects = {}
        unfinished = self._unfinished(weights, label)
        for name, stage in self.wanted(label).items():
            subjects = self.subjects(model, stage, shared, unfinished)
            for split, result in self.stage(name, subjects, done).items():
                if clash := measured[split].keys() & result["values"].keys():
                    raise UserError(f"[eval]: two stages measure {', '.join(sorted(clash))!r} on {split}")
                measured[split] |= result["values"]
                took |= {f"{split}/{m}": s for m, s in result["seconds"].items()}
        test, train = measured["test"], measured["train"]
        gap = {k: test[k] - train[k] for k in sorted(test.keys() & train.keys()) if not is_error_of(k)}
        kept = [(f"{split}-{name}", what, more) for (split, *_), s in shared.items() for name, what, more in s.kept]
        self._keep(label, kept)
        self.accelerator.wait_for_everyone()  # nobody writes parts any more
        values = {"test": test, "train": train, "gap": gap}
        self._ended[known] = values, kept
        return NetworkResults.model_validate(about | values | {"seconds": took})

    def _again(
        self, label: str, values: dict[str, Any], kept: list[Kept], about: dict[str, Any], done: Done | None
    ) -> NetworkResults:
        """The numbers and files of the same weights, under another label."""
        self._keep(label, kept)
        for *_, passes in self.planned(label):
            self.tally.passes += passes
            if done:
                done(self.tally, 0.0)
        return NetworkResults.model_validate(about | values | {"seconds": {}})

    def _keep(self, label: str, kept: list[Kept]) -> None:
        for name, what, about_it in kept:
            self.folder.keep(f"{label}-{name}", what, about_it)

    def _unfinished(self, weights: str, label: str) -> Work:
        """Where the parts of an interrupted measurement of these weights, by this protocol, are found again."""
        name = fingerprint(self.protocol().model_dump_json(), self.setting, weights)
        mine = f"{self.accelerator.process_index} of {self.accelerator.num_processes}"
        return Work(self.folder.unfinished / f"{label} {name}" / mine, self.tally)

    @cached_property
    def setting(self) -> str:
        """A fingerprint of what is measured but for the weights: architecture and images."""
        tables, data = self.recipe.tables, self.data
        named = json.dumps([tables.get(name) for name in ("data", "model", "plugins")])
        return fingerprint(named, *data.train.content(), *data.test.content())

    def planned(self, label: str) -> list[Planned]:
        """Everything `end` will do for a network, with the passes that the measures expect (their `passes()`).

        An RLoss that several ask for (their `searches()`) is the first one's.
        """
        plan: list[Planned] = []
        searched: set[tuple[Any, ...]] = set()
        for name, stage in self.wanted(label).items():
            for split in stage.splits:
                examples = self.size(split, stage)
                for measure, plugin in self.recipe.measures[name].items():
                    expected = getattr(plugin, "passes", lambda: 1)()
                    asked = getattr(plugin, "searches", list)()
                    for steps, restarts in [(0, 0), *asked] if asked else ():
                        search = split, stage.examples, stage.take, steps, restarts
                        expected += ((steps + 1) * restarts + 1) * (search not in searched)  # scored at the end
                        searched.add(search)
                    plan.append((name, split, measure, examples * expected // self.accelerator.num_processes))
        return plan

    def _final(self) -> dict[str, Stage]:
        return {n: s for n, s in self.recipe.stages.items() if s.every is None}

    def wanted(self, label: str) -> dict[str, Stage]:
        """The final stages for a network; those that are neither the last nor the best have all."""
        return {n: s for n, s in self._final().items() if label in s.models or label not in ("last", "best")}

    def protocol(self) -> Protocol:
        """How the final numbers are measured: every option, the examples really there, the seed."""
        recipe, options = self.recipe, self.recipe.eval
        stages = {
            name: StageProtocol(
                examples={s: self.size(s, stage) for s in stage.splits},
                take=stage.take,
                measures={m: as_table(p) for m, p in recipe.measures[name].items()},
            )
            for name, stage in self._final().items()
        }
        return Protocol(
            eps=options.eps,
            norm=options.norm,
            step_size=options.step_size,
            batch_size=options.batch_size,
            precision=self.precision,
            seed=recipe.run.seed,
            stages=stages,
        )
