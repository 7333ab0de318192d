"""What a run will cost: its passes, counted, and a few of them timed on this device.

Training steps and each kind of measure are run for real, on the run's own data and batches, for a few seconds; nothing
is kept. Measures that stop early on broken examples (AutoAttack, early stopping) are counted as they say themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from hookflat.functional.brackets import full_float32
from hookflat.functional.data import Batch, Images
from hookflat.functional.examples import Examples
from hookflat.functional.robustness import RobustLoss
from hookflat.recipe.recipe import Recipe, Stage
from hookflat.training import checkpoints, loop
from hookflat.training.fitting import forward_flops
from hookflat.training.hooks import Hooks
from hookflat.training.measuring import Measurements, Take
from hookflat.training.run import Run
from hookflat.training.subject import Subject
from hookflat.training.trial import in_nowhere, peak_memory

ENOUGH = 3.0
"""Seconds of steps, and of each kind of measure."""

FEWEST = 2
"""Steps that are timed, after one that is not."""

LONG = 10.0
"""Seconds of a first step, or of first passes of a measure, after which nothing more is made to be exact."""


@dataclass
class Passes:
    """Examples that went through a network: forward alone; and back, to the images or to the weights."""

    forward: int = 0
    images: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        """However far they went back."""
        return self.forward + self.images + self.weights

    def flops(self, forward: int) -> int:
        """Floating-point operations, of which a forward pass of one example has `forward`.

        Back to the images are as many again, back to the weights twice as many.
        """
        return forward * (self.forward + 2 * self.images + 3 * self.weights)


@dataclass(frozen=True)
class Part:
    """`times` times `passes` of each of `examples` through a network; `seconds` and `flops` are of all of it."""

    name: str
    times: int
    examples: int
    passes: int
    seconds: float
    flops: int


@dataclass(frozen=True)
class Cost:
    """What a run costs on one process of this device. `step`: the passes of a training step; sizes are in bytes."""

    device: str
    parameters: int
    step: Passes
    parts: list[Part]
    memory: int
    disk: int

    @property
    def hours(self) -> float:
        """Of everything."""
        return sum(part.seconds for part in self.parts) / 3600


class _EnoughError(Exception):
    """Raised inside a forward pass, to end a measure that was timed."""


@contextmanager
def counted(each: Callable[[Passes], None] = lambda passes: None) -> Generator[Passes]:
    """Inside, every pass of a batch of images through a network is counted; `each` is told after it was."""
    passes, depth = Passes(), [0]

    def before(module: nn.Module, args: Any) -> None:
        depth[0] += 1
        if depth[0] > 1 or not args or not isinstance(args[0], Tensor) or args[0].dim() != 4:
            return
        x, back = args[0], torch.is_grad_enabled()
        to_weights = back and any(p.requires_grad for p in module.parameters())
        kind = "weights" if to_weights else "images" if back and x.requires_grad else "forward"
        setattr(passes, kind, getattr(passes, kind) + len(x))
        each(passes)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        depth[0] -= 1

    handles = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _finished(device: torch.device) -> float:
    """The time, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of_a_pass(work: Callable[[], Any], device: torch.device, enough: float = ENOUGH) -> float:
    """Of one example through the network, in the first `enough` seconds of `work`; 0 where none goes through.

    The first batch, which may prepare things, does not count where there are others.
    """
    began: list[tuple[float, int]] = []  # of every batch, and the examples before it
    before = 0

    def each(passes: Passes) -> None:
        nonlocal before
        began.append((_finished(device) if len(began) < 2 else time.perf_counter(), before))
        few = 1 if not enough else 2 if began[-1][0] - began[0][0] >= LONG else 3
        if len(began) > few and began[-1][0] - began[1][0] >= enough:
            raise _EnoughError
        before = passes.total

    with counted(each) as passes:
        try:
            work()
            through = passes.total
        except _EnoughError:
            through = before
    if not passes.total:
        return 0.0
    first, examples = began[min(1, len(began) - 1)]
    return (_finished(device) - first) / max(1, through - examples)


@dataclass
class _Asked(Subject):
    """A subject that notes which robust losses a measure asks for, and answers with the clean one."""

    asked: set[tuple[int, int]] = field(default_factory=set)

    def robust(self, steps: int, restarts: int) -> RobustLoss:
        """No attack."""
        self.asked |= {(0, 0), (steps, restarts)}
        return super().robust(0, 0)


class _Measuring:
    """The cost of measures on one run's network, each kind timed once."""

    def __init__(self, run: Run, flops: int) -> None:
        self.run, self.model, self.flops = run, run.eval_model(), flops
        self._seconds: dict[Any, float] = {}

    def parts(self, measurements: Measurements, stages: dict[str, Stage], times: Callable[[Stage], int]) -> list[Part]:
        """Of the stages' measures. A robust loss that several of them ask for is counted once."""
        known: set[tuple[Any, ...]] = set()
        parts = []
        for name, stage in stages.items():
            for split in stage.splits:
                for measure, plugin in measurements.recipe.measures[name].items():
                    seconds, passes, asked = self._one(measurements, name, split, plugin)
                    examples = len(measurements.data.taken(split, stage.examples, stage.take))
                    where = (name if stage.every else "", split, stage.examples, stage.take)
                    new = {request for request in asked if (where, request) not in known}
                    known |= {(where, request) for request in new}
                    robust = sum((steps + 1) * restarts + 1 for steps, restarts in new)  # clean, or to score
                    whole = times(stage) * examples
                    took = whole * (passes * seconds + robust * (self.attack(measurements) if robust else 0))
                    passes, title = passes + robust, f"{name} {measure}, {split}"
                    parts.append(Part(title, times(stage), examples, passes, took, whole * 2 * passes * self.flops))
        return parts

    def attack(self, measurements: Measurements) -> float:
        """Seconds of an example through the network and back to its pixels, as measures do it."""
        key = (measurements.recipe.eval.batch_size, measurements.recipe.eval.precision)
        if key not in self._seconds:
            subject = self._subject(measurements, "test", None, "first")
            self._seconds[key] = seconds_of_a_pass(lambda: Subject.robust(subject, 20, 10), self.run.device)
        return self._seconds[key]

    def _one(
        self, measurements: Measurements, stage: str, split: str, plugin: Any
    ) -> tuple[float, int, set[tuple[int, int]]]:
        """Seconds of a measure's pass of an example, how many it makes, and the robust losses that it asks for."""
        options = measurements.recipe.stages[stage]
        subject = self._subject(measurements, split, options.examples, options.take)
        Subject.robust(subject, 0, 0)  # known from now on: none of the measure's own passes
        key, hook = (type(plugin), len(subject.examples)), measurements.hooks[stage].only("measure", plugin)
        enough = 0.0 if key in self._seconds else ENOUGH  # what it asks for, it asks for first
        with full_float32():
            seconds = seconds_of_a_pass(lambda: hook(subject=subject), self.run.device, enough)
        self._seconds.setdefault(key, seconds)
        passes = getattr(plugin, "passes", lambda: 1)() if seconds else 0
        return self._seconds[key], passes, subject.asked

    def _subject(self, measurements: Measurements, split: str, examples: int | None, take: Take) -> _Asked:
        """A batch of a split, labelled by the network: attacks that drop what is broken have something to do."""
        whole = measurements.subject(self.model, split, examples, take)
        size = whole.examples.batch_size
        images = whole.examples.images
        (x,) = images.levels([torch.arange(min(size, len(images)))])
        with torch.no_grad():
            y = self.run.attack_model(x.to(self.run.device).float() / 255).argmax(dim=1).cpu()
        batch = Examples(Images(x, y), batch_size=size, device=self.run.device)
        threat, start = whole.threat, whole.start
        return _Asked(
            self.model, split, batch, whole.num_classes, threat, whole.step_size, whole.seed, whole.precision, start
        )


def _together(parts: Iterable[Part]) -> Iterator[Part]:
    """What is done alike to several networks is one part."""
    alike: dict[tuple[str, int, int], list[Part]] = {}
    for part in parts:
        alike.setdefault((part.name, part.examples, part.passes), []).append(part)
    for (name, examples, passes), same in alike.items():
        times, seconds, flops = (sum(getattr(p, what) for p in same) for what in ("times", "seconds", "flops"))
        yield Part(name, times, examples, passes, seconds, flops)


def _batches(run: Run) -> Iterator[Batch]:
    """Of this epoch and all that follow."""
    while True:
        run.epoch = run.step // run.steps_per_epoch
        yield from run.batches()


def cost_of(recipe: Recipe, protocols: Sequence[tuple[Recipe, Sequence[str]]] = ()) -> Cost:
    """What a run of `recipe` costs on one process of this device, measured then by `protocols` on networks by name."""
    began = time.perf_counter()
    with in_nowhere(recipe) as run:
        parts = [Part("building", 1, 0, 0, time.perf_counter() - began, 0)]
        flops = forward_flops(run.network, run.data.test.__getitems__(torch.arange(1))[0].to(run.device))
        run.epoch = run.epochs // 2  # what begins with a part of the training has begun
        run.step = run.epoch * run.steps_per_epoch
        steps = _batches(run)
        start = _finished(run.device)
        with counted() as step:
            loop.step(run, next(steps))
        first = _finished(run.device) - start
        took = [first] if first >= LONG else []
        while first < LONG and (len(took) < FEWEST or sum(took) < ENOUGH):
            start = _finished(run.device)
            loop.step(run, next(steps))
            took.append(_finished(run.device) - start)
        size = run.batch_size
        parts.append(
            Part(
                "training steps",
                run.total_steps,
                size,
                round(step.total / size),
                run.total_steps * median(took),
                run.total_steps * step.flops(flops),
            )
        )
        start = time.perf_counter()
        checkpoints.save(run)
        saves = run.epochs * (1 + run.steps_per_epoch // recipe.run.checkpoint_steps)
        parts.append(Part("checkpoints", saves, 0, 0, saves * (time.perf_counter() - start), 0))
        measuring, measurements = _Measuring(run, flops), run.measurements
        for name, plugin in run.plugins.items():
            if passes := getattr(plugin, "passes", lambda run: 0)(run):
                seconds = passes * measuring.attack(measurements)
                parts.append(Part(name, 1, 0, passes, seconds, 2 * passes * flops))
        parts += measuring.parts(measurements, measurements.during(), lambda stage: run.times_due(stage.every or 1))
        labels = ["last", *(["best"] if "early_stopping" in run.plugins else [])]
        for label in labels:
            parts += measuring.parts(measurements, measurements.wanted(label), lambda _: 1)
        for protocol, which in protocols:
            hooks = {stage: Hooks(measures) for stage, measures in protocol.measures.items()}
            by_protocol = Measurements(protocol, run.data, run.accelerator, run.folder, hooks)
            for label in which:
                parts += measuring.parts(by_protocol, by_protocol.wanted(label), lambda _: 1)
        weights = sum(t.numel() * t.element_size() for t in run.network.state_dict().values())
        kept = sum(file.stat().st_size for file in run.folder.path.rglob("*") if file.is_file())
        parameters = sum(p.numel() for p in run.network.parameters())
        disk = 2 * kept + (1 + len(labels)) * weights
        return Cost(str(run.device), parameters, step, [*_together(parts)], peak_memory(run.device), disk)
