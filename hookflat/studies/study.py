"""Studies: many recipes, seeds and hyper-parameters, trained and measured alike in one folder.

A study is data, like a recipe. Every run is a folder of its own; what is complete and unchanged is left alone, what was
cut off goes on. `hookflat.studies.execution` makes the runs.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hookflat.errors import UserError
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.merging import assignment
from hookflat.recipe.nearest import nearest
from hookflat.recipe.options import InvalidOptions, build
from hookflat.recipe.shipped import find_protocol, find_recipe
from hookflat.recipe.tables import differences, flat
from hookflat.records.folder import RunFolder

PLAN = "plan.json"
"""In a study's folder, the names of all its runs in order, for who looks at it without its recipe."""
CLUSTER = "slurm"
"""In a study's folder, what its jobs on a cluster say."""

State = Literal["done", "begun", "todo", "changed", "elsewhere", "failed"]


@dataclass(eq=False)
class StudyOptions:
    """The table `[study]`."""

    runs: Annotated[list[str], Field(description="recipes, each with every seed")] = field(default_factory=list)
    seeds: Annotated[list[int], Field(description="of every run", min_length=1)] = field(default_factory=lambda: [0])
    folder: Annotated[str, Field(description="of the runs; {study} is filled in")] = "runs/{study}"
    protocol: Annotated[str, Field(description="hookflat eval's, after each run; none: the recipe's own measures")] = ""
    which: Annotated[list[str], Field(description="networks of a run that the protocol measures")] = field(
        default_factory=lambda: ["last"]
    )
    overlays: Annotated[list[str], Field(description="recipes laid over every run (scales)")] = field(
        default_factory=list
    )
    set: Annotated[dict[str, Any], Field(description="values of every run, as --set")] = field(default_factory=dict)
    measure: Annotated[dict[str, Any], Field(description="values of the protocol, as --set")] = field(
        default_factory=dict
    )


@dataclass(eq=False)
class Grid:
    """One table `[[study.grid]]`: a recipe at every combination of values, and rescaled."""

    recipe: Annotated[str, Field(description="its name or file")]
    values: Annotated[dict[str, list[Any]], Field(description="options to lists of values")] = field(
        default_factory=dict
    )
    rescale: Annotated[list[float], Field(description="factors of functionally equal networks")] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    name: str
    recipe: str
    seed: int
    folder: Path
    overlays: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()
    protocol: str = ""
    which: tuple[str, ...] = ("last",)
    measure: tuple[tuple[str, Any], ...] = ()
    plugins: tuple[str, ...] = ()
    rescaled: tuple[Path, float] | None = None

    @property
    def log(self) -> Path:
        """What the run said."""
        return RunFolder(self.folder).log

    @property
    def measures(self) -> Path:
        """The folder of what the protocol measures."""
        return RunFolder(self.folder).evaluation("-".join([Path(self.protocol).stem, *self.which])).path

    @property
    def results(self) -> Path:
        """The file that says that everything is measured."""
        return RunFolder(self.measures if self.protocol else self.folder).results

    def resolved(self) -> dict[str, Any]:
        """The tables of its recipe. Raises UserError when they are wrong."""
        known = catalogue_of(self.plugins)
        return load_recipe(self.recipe, overlays=self.overlays, overrides=dict(self.overrides), catalogue=known).tables

    def protocol_tables(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The `[eval]` of its protocol on a run of `recipe`. Raises UserError when it is wrong."""
        kept = {key: value for key, value in recipe["eval"].items() if not isinstance(value, dict)}
        known, overlays = catalogue_of(self.plugins), [find_protocol(self.protocol)]
        loaded = load_recipe(recipe | {"eval": kept}, overlays=overlays, overrides=dict(self.measure), catalogue=known)
        return loaded.tables["eval"]

    def changes(self) -> list[str]:
        """What is another in the folder's recipe than in the study's; empty where nothing was begun."""
        there = RunFolder(self.folder).recipe
        if not there.exists() or not (self.rescaled or self.results.exists() or self._begun()):
            return []
        tables = _written(self.folder)
        return [f"{there} cannot be read"] if tables is None else differences(tables, self.resolved())

    def protocol_changes(self) -> list[str]:
        """What is another in the protocol that measured the folder than in the study's."""
        there = RunFolder(self.measures).recipe
        if not self.protocol or not there.exists():
            return []
        tables = _written(self.measures)
        if not tables or "eval" not in tables:
            return [f"{there} cannot be read"]
        return differences({"eval": tables["eval"]}, {"eval": self.protocol_tables(self.resolved())})

    def state(self) -> State:
        """What there is of it."""
        if RunFolder(self.folder).in_use() or RunFolder(self.measures).in_use():
            return "elsewhere"
        if self.changes() or self.protocol_changes():
            return "changed"
        if self.results.exists():
            return "done"
        return "begun" if self._begun() else "todo"

    def _begun(self) -> bool:
        return RunFolder(self.folder).last_checkpoint() is not None

    def commands(self, processes: int = 1) -> Iterator[list[str]]:
        """What makes it, one after another: training (or rescaling), then measuring."""
        hookflat = [sys.executable, "-m", "hookflat"]
        plugins = _options("--plugin", self.plugins)
        if self.rescaled:
            source, factor = self.rescaled
            if not self.folder.exists():
                yield [*hookflat, "rescale", str(source), f"{factor:g}", "--out", str(self.folder), *plugins]
        else:
            started = [*_launched(processes), "-m", "hookflat"] if processes > 1 else hookflat
            values = _options("--set", (f"{key}={_toml(value)}" for key, value in self.overrides))
            overlays = _options("--with", self.overlays)
            yield [*started, "run", self.recipe, *overlays, *values, *plugins, "--out", str(self.folder)]
        if self.protocol:
            values = _options("--set", (f"{key}={_toml(value)}" for key, value in self.measure))
            which = _options("--which", self.which)
            protocol = ["--protocol", self.protocol, "--out", str(self.measures)]
            yield [*hookflat, "eval", str(self.folder), *protocol, *which, *values, *plugins]


@dataclass(frozen=True)
class Study:
    """A checked study: its name, its folder, its jobs in order."""

    name: str
    folder: Path
    jobs: list[Job]


@dataclass(frozen=True)
class Entry:
    """A run of a written plan: its folder, and the file that says that everything is measured."""

    folder: Path
    results: Path


def write_plan(study: Study) -> None:
    """Note the runs in the study's folder."""
    runs = [{"name": job.name, "results": str(job.results.relative_to(study.folder))} for job in study.jobs]
    beside = study.folder / f".{PLAN}.writing"
    beside.write_text(json.dumps({"name": study.name, "runs": runs}, indent=1), encoding="utf-8")
    beside.replace(study.folder / PLAN)


def read_plan(folder: Path) -> dict[str, Entry]:
    """Every run of the plan that `write_plan` left in a study's folder, by name; empty where there is none."""
    try:
        written = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return {run["name"]: Entry(folder / run["name"], folder / run["results"]) for run in written["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_study(
    study: str | Path,
    *,
    overlays: Iterable[str] = (),
    overrides: Iterable[str] = (),
    plugins: Iterable[Path] = (),
    protocol: str = "",
    folder: Path | None = None,
) -> Study:
    """Read and check a study and every recipe of it.

    `overlays`, `overrides`, `plugins`: for every run, after the study's own. `protocol`: instead of its own.
    Raises UserError for everything wrong.
    """
    path, plugins = _found(study), list(plugins)
    options, grids = _tables(path)
    place = folder or Path(options.folder.replace("{study}", path.stem))
    given = _flat(dict(assignment(o) for o in overrides))
    fixed = {"run.seed", *(key for grid in grids for key in grid.values)}
    if clash := sorted(given.keys() & fixed):
        raise UserError(f"--set {clash[0]}: the study itself sets it (seeds, or a grid)")
    values = _flat(options.set) | given
    base = Job("", "", 0, place, (*options.overlays, *overlays), (), protocol or options.protocol, tuple(options.which))
    base = replace(base, measure=tuple(_flat(options.measure).items()), plugins=tuple(map(str, plugins)))
    jobs = []
    for seed in options.seeds:  # every row once before any row twice
        for grid in [*(Grid(recipe) for recipe in options.runs), *grids]:
            for point in _points(grid.values):
                jobs += _jobs(base, place, grid, values | point, point, seed)
    names = [job.name for job in jobs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: names {sorted(twice)[0]!r} twice")
    if not jobs:
        raise UserError(f"{path}: a study needs runs = [...] or [[study.grid]]")
    for job in jobs:
        if job.seed == options.seeds[0] and not job.rescaled:  # the others are no other recipes
            tables = job.resolved()
            if job.protocol:
                job.protocol_tables(tables)
    for which in options.which:
        if which not in ("last", "best", "live") and not which.isdigit():
            raise UserError(f"{path}: study.which: {which!r} should be last, best, live or the number of an epoch")
    return Study(path.stem, place, jobs)


def _jobs(
    base: Job, place: Path, grid: Grid, values: dict[str, Any], point: dict[str, Any], seed: int
) -> Iterator[Job]:
    """A run of a grid, and its rescaled networks."""
    short = [f"{key.split('.')[-1]}={_plain(value)}" for key, value in point.items()]
    name = "-".join([Path(grid.recipe).stem, *short, str(seed)])
    chosen = tuple((values | {"run.seed": seed}).items())
    job = replace(base, name=name, recipe=grid.recipe, seed=seed, folder=place / name, overrides=chosen)
    yield job
    for factor in grid.rescale:
        scaled = f"{name}-x{factor:g}"
        yield replace(job, name=scaled, folder=place / scaled, which=("last",), rescaled=(job.folder, factor))


def _written(folder: Path) -> dict[str, Any] | None:
    """The tables of a recipe in a run's folder; None where it is damaged."""
    try:
        return RunFolder(folder).read_recipe()
    except UserError:
        return None


def _found(study: str | Path) -> Path:
    if Path(study).is_file():
        return Path(study)
    try:
        return find_recipe(f"studies/{str(study).removeprefix('recipes/').removeprefix('studies/')}")
    except UserError as error:
        raise UserError(
            f"no study {study}: give a TOML file, or one of table1, hyperparameters, ...: {error}"
        ) from None


def _tables(path: Path) -> tuple[StudyOptions, list[Grid]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for name in tables.keys() - {"study"}:
        raise UserError(f"{path}: unknown table [{name}]{nearest(name, ['study'])}")
    options = dict(tables.get("study", {}))
    grids = options.pop("grid", [])
    return _built(StudyOptions, options, f"{path}: study"), [_built(Grid, g, f"{path}: study.grid") for g in grids]


def _built(cls: Any, table: dict[str, Any], where: str) -> Any:
    try:
        return build(cls, table)
    except InvalidOptions as error:
        raise UserError("\n".join(f"{'.'.join([where, *path])}: {message}" for path, message in error.faults)) from None


def _points(values: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of a grid; one empty one without a grid."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _plain(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]", "_", f"{value:g}" if isinstance(value, float) else str(value))


def _toml(value: Any) -> str:
    """A number, string, boolean or list of them, as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Tables among the values as dotted keys."""
    return {".".join(path): value for path, value in flat(values)}


def _launched(processes: int) -> list[str]:
    """`accelerate launch`; port 0 is a free one, and --multi_gpu is also what starts several processes on a CPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # the run itself sets these
    return [*launch, *plain, "--main_process_port", "0"]


def _options(name: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (name, value)]
