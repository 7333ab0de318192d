"""One run's folder as a report reads it: recipe, evaluations, curves, landscape; or why it cannot be used."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from hookflat.records import RunFolder

Numbers = dict[str, float]
Setting = tuple[tuple[str, Any], ...]


class UnusableError(Exception):
    """Why a folder is left out."""


class Network(NamedTuple):
    """Measured weights of a run: "last", "best" (early stopped) or an epoch. Numbers by split, gap test minus train."""

    label: str
    epoch: int | None
    test: Numbers
    train: Numbers
    gap: Numbers


class Landscape(NamedTuple):
    """RLoss (P,) at the points t (P,), the mean over random directions, and RErr at t = 0."""

    t: list[float]
    rloss: list[float]
    rerr: float


class _Stage(BaseModel):
    examples: dict[str, int]
    measures: dict[str, dict[str, Any]]


class _Protocol(BaseModel):
    eps: float
    step_size: float
    seed: int
    stages: dict[str, _Stage]


class _Results(BaseModel):
    """The file eval.json."""

    recipe: str
    protocol: _Protocol
    models: dict[str, dict[str, Any]]
    model: str = ""
    classes: int | None = None
    seconds: dict[str, float] = {}


@dataclass(eq=False)
class Evaluation:
    """One eval.json: of a training (`name` and `model` ""), or of `hookflat eval MODEL`.

    `setup`: radius, data, and measures and test examples of every stage; equal where numbers can be compared.
    `dropped`: numbers that are not finite. `seconds`, `training`: wall time of the measures, and of the training.
    """

    name: str
    model: str
    recipe: str
    protocol: dict[str, Any]
    setup: dict[str, Any]
    networks: dict[str, Network]
    classes: int | None
    rescaled: float | None
    dropped: list[str]
    seconds: float
    training: float | None

    @property
    def key(self) -> str:
        """`setup` as a text."""
        return json.dumps(self.setup, sort_keys=True)

    @property
    def measured(self) -> bool:
        """Whether there is any number: a recipe may leave measuring to `hookflat eval`."""
        return any(network.test for network in self.networks.values())


@dataclass(eq=False)
class Run:
    """A run that is trained, or a checkpoint that `hookflat eval` measured.

    `method`: the recipe's name. `setting`: the options in which it differs from other runs of its method. `records`:
    the lines of metrics.jsonl. `training`: its wall time in seconds, where it is known. `networks`: with the numbers
    that go into the report.
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
    landscape: Landscape | None
    setting: Setting = ()
    networks: dict[str, Network] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Of the whole training."""
        options = self.recipe.get("run", {})
        return max(1, round(options.get("epochs", 1) * options.get("epochs_factor", 1.0)))

    @property
    def anchor(self) -> str:
        """Of the run on the page."""
        return "run-" + re.sub(r"[^\w.=-]", "_", self.name)

    @property
    def trained_here(self) -> bool:
        """Not somebody else's weights."""
        return self.rescaled is not None or any(not e.model for e in self.evaluations)


def is_run(folder: Path) -> bool:
    """Whether a folder claims to be a run's."""
    return (folder / "recipe.toml").is_file() or (folder / "eval.json").is_file()


def read_run(name: str, folder: Path) -> Run:
    """Raises UnusableError with the reason."""
    if not is_run(folder):
        raise UnusableError("no run: it has neither recipe.toml nor eval.json")
    if "~" in folder.name:
        raise UnusableError("an older run, moved aside by --redo")
    recipe = _toml(folder / "recipe.toml")
    files = [f for f in (folder / "eval.json", *sorted(folder.glob("eval/*/eval.json"))) if f.exists()]
    if not files:
        raise UnusableError(_unfinished(folder))
    evaluations = [_evaluation(file, folder, recipe.get("data", {})) for file in files]
    seed = recipe.get("run", {}).get("seed", evaluations[0].protocol["seed"])
    own = next((e.recipe for e in evaluations if not e.name), "")
    return Run(
        name=name,
        folder=folder,
        method=own or re.sub(rf"(-{seed})?(-x[\d.e+]+)?$", "", folder.resolve().name),
        seed=seed,
        rescaled=next((e.rescaled for e in evaluations if e.rescaled), None),
        recipe=recipe,
        environment=_json(folder / "environment.json") if (folder / "environment.json").exists() else {},
        evaluations=evaluations,
        records=_records(folder / "metrics.jsonl"),
        training=next((e.training for e in evaluations if not e.name), None),
        landscape=_landscape(folder),
    )


def last_line(log: Path) -> str:
    """What a log ends with."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _unfinished(folder: Path) -> str:
    """Why a run has no results."""
    if RunFolder(folder).in_use():
        return "not finished: it is being trained now"
    log = folder.with_name(f"{folder.name}.log")
    said = f"; its log ends: {last_line(log)}" if log.exists() else ""
    at = RunFolder(folder).last_checkpoint()
    where = f"it stopped at epoch {int(at.name.rpartition('-')[2])}" if at else "no checkpoint"
    return f"not finished: {where}{said}"


def _evaluation(file: Path, folder: Path, data: dict[str, Any]) -> Evaluation:
    try:
        results = _Results.model_validate(_json(file))
        dropped: list[str] = []
        networks = {label: _network(label, entry, dropped) for label, entry in results.models.items()}
        seconds = sum(sum(entry.get("seconds", {}).values()) for entry in results.models.values())
    except (ValidationError, TypeError, ValueError, AttributeError) as error:
        first = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UnusableError(f"{file.relative_to(folder)} is not what hookflat writes: {first}") from None
    protocol = results.protocol
    stages = {n: {"examples": s.examples.get("test"), **s.measures} for n, s in protocol.stages.items()}
    setup = {"eps": protocol.eps, "step_size": protocol.step_size, **stages}
    return Evaluation(
        name="" if file.parent == folder else file.parent.name,
        model=results.model,
        recipe=results.recipe,
        protocol=protocol.model_dump(),
        setup=setup | {"data": {"name": data.get("name"), "path": data.get("path")}},
        networks=networks,
        classes=results.classes,
        rescaled=next((e["rescaled"] for e in results.models.values() if "rescaled" in e), None),
        dropped=dropped,
        seconds=seconds,
        training=results.seconds.get("training"),
    )


def _network(label: str, entry: dict[str, Any], dropped: list[str]) -> Network:
    """The numbers of a network; those that are not finite are left out and named in `dropped`."""
    parts = {part: {k: float(v) for k, v in entry.get(part, {}).items()} for part in ("test", "train", "gap")}
    dropped += [f"{label} {p} {k}" for p in ("test", "train") for k, v in parts[p].items() if not math.isfinite(v)]
    finite = {part: {k: v for k, v in numbers.items() if math.isfinite(v)} for part, numbers in parts.items()}
    return Network(label, entry.get("epoch"), **finite)


def _records(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for one that was cut off."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in found if isinstance(record, dict)]


def _landscape(folder: Path) -> Landscape | None:
    """RLoss along random directions, layer by layer, of the last network on test examples (Fig. 4)."""
    files = sorted(folder.glob("**/tables/last-test-landscape_layer.parquet"))
    if not files:
        return None
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(files[0]).to_pydict()
        lines = [values for name, values in table.items() if name.startswith("rloss_")]
        t, middle = table["t"], min(range(len(table["t"])), key=lambda i: abs(table["t"][i]))
        errors = [values[middle] for name, values in table.items() if name.startswith("rerr_")]
        return Landscape(t, [fmean(at) for at in zip(*lines, strict=True)], fmean(errors))
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise UnusableError(f"{files[0].relative_to(folder)} cannot be read: {error}") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableError(f"{file.name} cannot be read: {error}") from None


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UnusableError(f"{file.name} cannot be read: {error}") from None
