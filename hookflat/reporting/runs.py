"""One run's folder as a report reads it: recipe, evaluations, curves, landscape; or why it cannot be used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from hookflat.errors import UserError
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.defaults import plugin_with_defaults, with_defaults
from hookflat.recipe.tables import as_key
from hookflat.records.folder import Label, RunFolder
from hookflat.records.quantities import Quantity
from hookflat.records.results import NetworkResults, Protocol, Results
from hookflat.records.texts import read_json, read_lines, read_toml
from hookflat.reporting.landscapes import LandscapeCurve, read_landscape

THREAT = ("norm", "eps", "step_size", "data")
"""What has to be equal of two evaluations before their numbers are set side by side."""

Numbers = dict[str, float]
Found = TypeVar("Found")


class UnusableError(Exception):
    """Why a folder is left out."""


PARTS = ("test", "train", "gap")


class Network(NamedTuple):
    """Measured weights of a run: "last", "best" (early stopped) or an epoch. Numbers by split, gap test minus train."""

    label: str
    epoch: int | None
    test: Numbers
    train: Numbers
    gap: Numbers

    @property
    def named(self) -> set[tuple[str, str]]:
        """(part, name) of every number."""
        return {(part, name) for part in PARTS for name in getattr(self, part)}

    def value(self, key: str) -> float:
        """A number on test images, on training images ("NAME train") or the gap of one ("NAME gap"); NaN for none."""
        name, part = parted(key)
        return {"test": self.test, "train": self.train, "gap": self.gap}[part].get(name, math.nan)


def parted(key: str) -> tuple[str, str]:
    """Name and part, "test", "train" or "gap", of a key of `Network.value`."""
    name, _, part = key.rpartition(" ")
    return (name, part) if part in ("train", "gap") and name else (key, "test")


class _Recipe(BaseModel):
    """What a report needs of the file recipe.toml."""

    run: dict[str, Any] = {}
    data: dict[str, Any] = {}
    eval: dict[str, Any] = {}


@dataclass(eq=False)
class Evaluation:
    """One eval.json: of a training (`name` and `model` ""), or of `hookflat eval MODEL`.

    `setup`: "norm", "eps", "step_size", the "data" but for its training set, and under "stages" the measures and how
    many examples were asked for; equal where numbers can be compared. `weights`: fingerprints of the networks.
    `dropped`: numbers that are not finite. `quantities`: what each number is. `seconds`, `training`: wall time of the
    measures and of the training.
    """

    name: str
    model: str
    recipe: str
    protocol: Protocol
    setup: dict[str, Any]
    networks: dict[str, Network]
    quantities: dict[str, Quantity]
    weights: dict[str, str]
    classes: int | None
    rescaled: float | None
    dropped: list[str]
    seconds: float
    training: float | None

    @property
    def key(self) -> str:
        """`setup` as a text."""
        return as_key(self.setup)

    def covers(self, other: Evaluation) -> bool:
        """Whether it has all that `other` measured, measured alike; it may have more measures and stages."""
        mine, stages = self.setup["stages"], other.setup["stages"]
        shared = {
            name: {k: v for k, v in mine[name].items() if k in {"take", *stages[name]}}
            for name in stages
            if name in mine
        }
        return as_key(self.setup | {"stages": shared}) == other.key

    @property
    def measured(self) -> bool:
        """Whether there is any number: a recipe may leave measuring to `hookflat eval`."""
        return any(network.test for network in self.networks.values())


@dataclass(eq=False)
class MeasuredRun:
    """A run that is trained, or a checkpoint that `hookflat eval` measured.

    `method`: the recipe's name. `records`: the lines of metrics.jsonl. `training`: its wall time in seconds, where it
    is known. `aside`: older measures that --redo moved aside. `damaged`: lines of metrics.jsonl that are
    no records. `label`: what a study of checkpoints says of it. `networks`: with the numbers that go into the report.
    """

    name: str
    folder: Path
    method: str
    seed: int
    rescaled: float | None
    recipe: dict[str, Any]
    environment: dict[str, Any]
    evaluations: list[Evaluation]
    records: list[dict[str, Any]]
    training: float | None
    landscape: LandscapeCurve | None
    aside: list[str]
    damaged: list[int]
    label: Label | None = None
    networks: dict[str, Network] = field(default_factory=dict)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What each of its numbers is."""
        return {name: what for e in self.evaluations for name, what in e.quantities.items()}

    @property
    def epochs(self) -> int:
        """Of the whole training."""
        options = self.recipe.get("run", {})
        return max(1, round(options.get("epochs", 1) * options.get("epochs_factor", 1.0)))

    @property
    def anchor(self) -> str:
        """Of the run on the page."""
        return "run-" + as_id(self.name)

    @property
    def early_stopped(self) -> bool:
        """Whether its only network is not the end of its training."""
        return self.label is not None and self.label.early_stopped

    @property
    def trained_here(self) -> bool:
        """Not somebody else's weights."""
        return self.rescaled is not None or any(not e.model for e in self.evaluations)


def as_id(name: str) -> str:
    """A name as a part of an id, different for different names."""
    return re.sub(r"[^\w.=-]", lambda character: f"_{ord(character[0]):x}_", name)


def distinct(
    runs: Sequence[MeasuredRun], labels: Sequence[str] = ("last", "best")
) -> list[tuple[MeasuredRun, str, Network]]:
    """(run, label, network): early stopping may keep the last weights, or two runs the same; each once."""
    seen: set[str] = set()
    kept = []
    for label in labels:
        for run in runs:
            weights = next((e.weights[label] for e in run.evaluations if label in e.weights), None)
            if label in run.networks and weights not in seen:
                kept.append((run, label, run.networks[label]))
                seen |= {weights} if weights else set()
    return kept


def read_run(name: str, folder: Path) -> MeasuredRun:
    """Raises UnusableError with the reason."""
    try:
        return _read(name, folder)
    except OSError as error:
        raise UnusableError(f"cannot be read: {error}") from error


def _read(name: str, place: Path) -> MeasuredRun:
    folder = RunFolder(place)
    if not folder.is_run and any(RunFolder(inner).is_run for inner in place.iterdir()):
        raise UnusableError("no run, but a folder of runs: name it as well to include them")
    if not folder.is_run:
        raise UnusableError("no run: it has neither recipe.toml nor eval.json")
    if _aside(folder):
        raise UnusableError("an older run, moved aside by --redo")
    tables = _recipe_of(folder)
    recipe = _recipe(tables, folder.recipe)
    measured = [*([folder] if folder.results.exists() else []), *folder.evaluations()]
    label = _label(folder)
    evaluations = [_evaluation(f, folder, recipe, label) for f in measured if f is folder or not _aside(f)]
    own = next((e for e in evaluations if not e.name or (e.model and e.name == place.resolve().name)), None)
    rescaled = next((e.rescaled for e in evaluations if e.rescaled), None)
    if own is None and not rescaled:
        raise UnusableError(_unfinished(folder))
    seed = recipe.run.get("seed", evaluations[0].protocol.seed)
    records, damaged = _told(read_lines, folder.metrics, folder)
    return MeasuredRun(
        name=name,
        folder=place,
        method=label.method
        if label
        else own.recipe
        if own
        else re.sub(rf"(-[\w.]+=.*|(-{seed})?(-x[\d.e+]+)?)$", "", place.resolve().name),
        seed=seed,
        rescaled=rescaled,
        recipe=with_defaults(tables, catalogue_of()),
        environment=_environment(folder),
        evaluations=evaluations,
        records=records,
        damaged=damaged,
        training=own.training if own else None,
        landscape=_landscape(folder, evaluations),
        aside=[f.path.name for f in measured if f is not folder and _aside(f)],
        label=label,
    )


def _label(folder: RunFolder) -> Label | None:
    try:
        return folder.read_label()
    except UserError as error:
        raise UnusableError(str(error).replace(f"{folder.path}/", "", 1)) from None


def _environment(folder: RunFolder) -> dict[str, Any]:
    """Empty where a run has none, as a rescaled one."""
    file = folder.environment
    environment = _told(read_json, file, folder) if file.exists() else {}
    if not isinstance(environment, dict):
        raise UnusableError(f"{file.name} is not what hookflat writes")
    return environment


def _aside(folder: RunFolder) -> bool:
    """Whether --redo moved it aside."""
    return "~" in folder.path.name


def last_line(log: Path) -> str:
    """What a log ends with, in short."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1], 120) if lines else "nothing"


def _unfinished(folder: RunFolder) -> str:
    """Why a run has no results."""
    said = f"; its log ends: {last_line(folder.log)}" if folder.log.exists() else ""
    epoch = folder.last_epoch()
    return f"not finished: {'no checkpoint' if epoch is None else f'at epoch {epoch}'}{said}"


def _evaluation(place: RunFolder, folder: RunFolder, recipe: _Recipe, label: Label | None) -> Evaluation:
    """`recipe`: of the run; `hookflat eval` keeps its own beside the results. The one network of a study's checkpoint
    is its last, whatever its training called it."""
    if place is not folder and place.recipe.exists():
        recipe = _recipe(_recipe_of(place), place.recipe)
    results = _told(Results.read, place.results, folder)
    dropped: list[str] = []
    models = results.models
    if label and len(models) == 1:
        models = {"last": next(iter(models.values()))}
    networks = {which: _network(which, numbers, dropped) for which, numbers in models.items()}
    top = folder.path.resolve().name if results.model else ""
    return Evaluation(
        name=top if place is folder else place.path.name,
        model=results.model,
        recipe=results.recipe,
        protocol=results.protocol,
        setup=_setup(results.protocol, recipe),
        networks=networks,
        quantities=results.numbers,
        weights={which: numbers.weights for which, numbers in models.items() if numbers.weights},
        classes=results.classes,
        rescaled=next((n.rescaled for n in results.models.values() if n.rescaled), None),
        dropped=dropped,
        seconds=sum(sum(numbers.seconds.values()) for numbers in results.models.values()),
        training=results.seconds.get("training"),
    )


def _setup(protocol: Protocol, recipe: _Recipe) -> dict[str, Any]:
    """As many examples as were asked for: a small training set has fewer."""
    stages = {}
    for name, stage in protocol.stages.items():
        table = recipe.eval.get(name)
        asked = table.get("examples") if isinstance(table, dict) else None
        last = {"take": stage.take} if stage.take != "first" else {}
        stages[name] = {
            "examples": {split: asked or n for split, n in stage.examples.items()},
            **last,
            **{m: plugin_with_defaults(m, options, catalogue_of()) for m, options in stage.measures.items()},
        }
    data = {option: value for option, value in recipe.data.items() if not option.startswith("train")}
    return {"norm": protocol.norm, "eps": protocol.eps, "step_size": protocol.step_size, "data": data, "stages": stages}


def _network(label: str, numbers: NetworkResults, dropped: list[str]) -> Network:
    """The numbers of a network; what is no finite number is left out and named in `dropped`."""
    parts = {"test": numbers.test, "train": numbers.train, "gap": numbers.gap}
    finite = {part: {k: v for k, v in values.items() if math.isfinite(v)} for part, values in parts.items()}
    dropped += [f"{label} {part} {k}" for part in ("test", "train") for k in parts[part] if k not in finite[part]]
    return Network(label, numbers.epoch, **finite)


def _landscape(folder: RunFolder, evaluations: list[Evaluation]) -> LandscapeCurve | None:
    """RLoss along random directions, layer by layer, of the last network on test examples (Fig. 4)."""
    places = [*(f for f in folder.evaluations() if not _aside(f)), folder]
    place = next((p for p in places if p.table("last-test-landscape_layer").exists()), None)
    if place is None:
        return None
    file = place.table("last-test-landscape_layer")
    of = [e for e in evaluations if (place is folder and not e.name) or e.name == place.path.name]
    threat = {name: of[0].setup[name] for name in THREAT} if of else {}
    try:
        return read_landscape(file, threat)
    except (OSError, KeyError, ValueError, TypeError) as error:  # somebody else's table
        raise UnusableError(f"{file.relative_to(folder.path)} cannot be read: {error}") from None


def _told(read: Callable[[Path], Found], file: Path, folder: RunFolder) -> Found:
    """What `read` makes of a file of the folder. Raises UnusableError."""
    try:
        return read(file)
    except UserError as error:
        raise UnusableError(str(error).replace(f"{folder.path}/", "", 1)) from None


def _recipe_of(folder: RunFolder) -> dict[str, Any]:
    """Empty where a folder has none."""
    return _told(read_toml, folder.recipe, folder) if folder.recipe.exists() else {}


def _recipe(tables: dict[str, Any], file: Path) -> _Recipe:
    try:
        return _Recipe.model_validate(tables)
    except ValidationError as error:
        raise UnusableError(f"{file.name} is no recipe: {' '.join(str(error).splitlines()[1:3])}") from None
