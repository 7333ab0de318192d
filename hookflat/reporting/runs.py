"""One run's folder as a report reads it: recipe, evaluations, curves, landscape; or why it cannot be used."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from hookflat.functional.landscapes import RADIUS
from hookflat.records.folder import RunFolder

Numbers = dict[str, float]


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
    """RLoss (P,) at the points t (P,), the mean over random directions, and RErr at t = 0.

    `radius`: the relative length of a direction. `key`: how it was measured, equal where landscapes can be compared.
    """

    t: list[float]
    rloss: list[float]
    rerr: float
    directions: int
    radius: float
    key: str


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


class _Recipe(BaseModel):
    """What a report needs of the file recipe.toml."""

    run: dict[str, Any] = {}
    data: dict[str, Any] = {}
    eval: dict[str, Any] = {}


@dataclass(eq=False)
class Evaluation:
    """One eval.json: of a training (`name` and `model` ""), or of `hookflat eval MODEL`.

    `setup`: "eps", "step_size", the "data" but for its training set, and under "stages" the measures and how many
    examples were asked for; equal where numbers can be compared. `weights`: fingerprints of the networks. `dropped`:
    numbers that are not finite. `seconds`, `training`: wall time of the measures, and of the training.
    """

    name: str
    model: str
    recipe: str
    protocol: dict[str, Any]
    setup: dict[str, Any]
    networks: dict[str, Network]
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

    @property
    def measured(self) -> bool:
        """Whether there is any number: a recipe may leave measuring to `hookflat eval`."""
        return any(network.test for network in self.networks.values())


@dataclass(eq=False)
class Run:
    """A run that is trained, or a checkpoint that `hookflat eval` measured.

    `method`: the recipe's name. `records`: the lines of metrics.jsonl. `training`: its wall time in seconds, where it
    is known. `aside`: older measures that --redo moved aside. `networks`: with the numbers that go into the report.
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
    aside: list[str]
    networks: dict[str, Network] = field(default_factory=dict)

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
    def trained_here(self) -> bool:
        """Not somebody else's weights."""
        return self.rescaled is not None or any(not e.model for e in self.evaluations)


def as_id(name: str) -> str:
    """A name as a part of an id, different for different names."""
    return re.sub(r"[^\w.=-]", lambda character: f"_{ord(character[0]):x}_", name)


def distinct(runs: Iterable[Run]) -> list[tuple[Run, str, Network]]:
    """(run, "last" or "best", network): early stopping may keep the last weights, or two runs the same; each once."""
    seen: set[str] = set()
    found = []
    for label in ("last", "best"):
        for run in runs:
            weights = next((e.weights[label] for e in run.evaluations if label in e.weights), None)
            if label in run.networks and weights not in seen:
                found.append((run, label, run.networks[label]))
                seen |= {weights} if weights else set()
    return found


def as_key(setup: Any) -> str:
    """Nested tables as a text, 20 and 20.0 alike."""
    return json.dumps(_floats(setup), sort_keys=True)


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_run(folder: Path) -> bool:
    """Whether a folder claims to be a run's."""
    return (folder / "recipe.toml").is_file() or (folder / "eval.json").is_file()


def read_run(name: str, folder: Path) -> Run:
    """Raises UnusableError with the reason."""
    try:
        return _read(name, folder)
    except OSError as error:
        raise UnusableError(f"cannot be read: {error}") from error


def _read(name: str, folder: Path) -> Run:
    if not is_run(folder) and any(is_run(inner) for inner in folder.iterdir()):
        raise UnusableError("no run, but a folder of runs: name it as well to include them")
    if not is_run(folder):
        raise UnusableError("no run: it has neither recipe.toml nor eval.json")
    if "~" in folder.name:
        raise UnusableError("an older run, moved aside by --redo")
    tables = _toml(folder / "recipe.toml")
    recipe = _recipe(tables, "recipe.toml")
    found = [f for f in (folder / "eval.json", *sorted(folder.glob("eval/*/eval.json"))) if f.exists()]
    files = [f for f in found if not _aside(f)]
    evaluations = [_evaluation(file, folder, recipe) for file in files]
    own = next((e for e in evaluations if not e.name or (e.model and e.name == folder.resolve().name)), None)
    rescaled = next((e.rescaled for e in evaluations if e.rescaled), None)
    if own is None and not rescaled:
        raise UnusableError(_unfinished(folder))
    seed = recipe.run.get("seed", evaluations[0].protocol["seed"])
    return Run(
        name=name,
        folder=folder,
        method=own.recipe if own else re.sub(rf"(-[\w.]+=.*|(-{seed})?(-x[\d.e+]+)?)$", "", folder.resolve().name),
        seed=seed,
        rescaled=rescaled,
        recipe=tables,
        environment=_environment(folder / "environment.json"),
        evaluations=evaluations,
        records=_records(folder / "metrics.jsonl"),
        training=own.training if own else None,
        landscape=_landscape(folder, evaluations),
        aside=[f.parent.name for f in found if _aside(f)],
    )


def _environment(file: Path) -> dict[str, Any]:
    """Empty where a run has none, as a rescaled one."""
    found = _json(file) if file.exists() else {}
    if not isinstance(found, dict):
        raise UnusableError(f"{file.name} is not what hookflat writes")
    return found


def _aside(file: Path) -> bool:
    """Whether it lies in a folder of measures that --redo moved aside."""
    return "~" in file.parent.name


def last_line(log: Path) -> str:
    """What a log ends with, in short."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1], 120) if lines else "nothing"


def _unfinished(folder: Path) -> str:
    """Why a run has no results."""
    log = folder.with_name(f"{folder.name}.log")
    said = f"; its log ends: {last_line(log)}" if log.exists() else ""
    at = RunFolder(folder).last_checkpoint()
    where = f"at epoch {int(at.name.rpartition('-')[2])}" if at else "no checkpoint"
    return f"not finished: {where}{said}"


def _evaluation(file: Path, folder: Path, recipe: _Recipe) -> Evaluation:
    """`recipe`: of the run; `hookflat eval` keeps its own beside the results."""
    beside = file.parent / "recipe.toml"
    if file.parent != folder and beside.exists():
        recipe = _recipe(_toml(beside), str(beside.relative_to(folder)))
    try:
        results = _Results.model_validate(_json(file))
        dropped: list[str] = []
        networks = {label: _network(label, entry, dropped) for label, entry in results.models.items()}
        seconds = sum(sum(entry.get("seconds", {}).values()) for entry in results.models.values())
    except (ValidationError, TypeError, ValueError, AttributeError) as error:
        first = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UnusableError(f"{file.relative_to(folder)} is not what hookflat writes: {first}") from None
    protocol = results.protocol
    top = folder.resolve().name if results.model else ""
    return Evaluation(
        name=top if file.parent == folder else file.parent.name,
        model=results.model,
        recipe=results.recipe,
        protocol=protocol.model_dump(),
        setup=_setup(protocol, recipe),
        networks=networks,
        weights={label: w for label, e in results.models.items() if isinstance(w := e.get("weights"), str)},
        classes=results.classes,
        rescaled=next((e["rescaled"] for e in results.models.values() if "rescaled" in e), None),
        dropped=dropped,
        seconds=seconds,
        training=results.seconds.get("training"),
    )


def _setup(protocol: _Protocol, recipe: _Recipe) -> dict[str, Any]:
    """As many examples as were asked for: a small training set has fewer."""
    stages = {}
    for name, stage in protocol.stages.items():
        table = recipe.eval.get(name)
        asked = table.get("examples") if isinstance(table, dict) else None
        stages[name] = {"examples": {split: asked or n for split, n in stage.examples.items()}, **stage.measures}
    data = {option: value for option, value in recipe.data.items() if not option.startswith("train")}
    return {"eps": protocol.eps, "step_size": protocol.step_size, "data": data, "stages": stages}


def _network(label: str, entry: dict[str, Any], dropped: list[str]) -> Network:
    """The numbers of a network; what is no finite number is left out and named in `dropped`."""
    found: dict[str, Numbers] = {}
    for part in ("test", "train", "gap"):
        values = entry.get(part, {})
        found[part] = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        dropped += [f"{label} {part} {k}" for k in values if part != "gap" and k not in found[part]]
    return Network(label, entry.get("epoch"), **found)


def _records(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for what was cut off or is no number or word."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("epoch"), int):
            found.append({k: v for k, v in record.items() if isinstance(v, int | float | str)})
    return found


def _landscape(folder: Path, evaluations: list[Evaluation]) -> Landscape | None:
    """RLoss along random directions, layer by layer, of the last network on test examples (Fig. 4)."""
    name = "tables/last-test-landscape_layer.parquet"
    files = [f for f in sorted(folder.glob(f"eval/*/{name}")) if not _aside(f.parent)] + [folder / name]
    file = next((f for f in files if f.exists()), None)
    if file is None:
        return None
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file).to_pydict()
        lines = [values for name, values in table.items() if name.startswith("rloss_")]
        t, middle = table["t"], min(range(len(table["t"])), key=lambda i: abs(table["t"][i]))
        errors = [values[middle] for name, values in table.items() if name.startswith("rerr_")]
        means = [fmean(at) for at in zip(*lines, strict=True)]
        radius, key = _landscape_protocol(file.parent.parent, folder, evaluations)
        return Landscape(t, means, fmean(errors), len(lines), radius, key)
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise UnusableError(f"{file.relative_to(folder)} cannot be read: {error}") from None


def _landscape_protocol(place: Path, folder: Path, evaluations: list[Evaluation]) -> tuple[float, str]:
    """The radius, and how the landscape in a folder of results was measured."""
    of = [e for e in evaluations if (place == folder and not e.name) or e.name == place.name]
    stages = [s for e in of for s in e.setup["stages"].values() if "landscape" in s]
    if not stages:
        return RADIUS["layer"], ""
    radius = stages[0]["landscape"].get("radius")
    known = {name: of[0].setup[name] for name in ("eps", "step_size", "data")}
    key = as_key(known | {"examples": stages[0]["examples"].get("test"), "landscape": stages[0]["landscape"]})
    return RADIUS["layer"] if radius is None else radius, key


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


def _recipe(tables: dict[str, Any], file: str) -> _Recipe:
    try:
        return _Recipe.model_validate(tables)
    except ValidationError as error:
        raise UnusableError(f"{file} is no recipe: {' '.join(str(error).splitlines()[1:3])}") from None
