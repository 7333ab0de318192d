"""Studies: many recipes, seeds and hyper-parameters, trained and measured alike in one folder.

A study is data, like a recipe. Every run is a folder of its own; what is complete and unchanged is left alone, what was
cut off goes on. `hookflat.studies.execution` makes the runs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field

from hookflat.errors import UserError
from hookflat.recipe.merging import assignment
from hookflat.recipe.naming import plain
from hookflat.recipe.nearest import nearest
from hookflat.recipe.options import InvalidOptions, build
from hookflat.recipe.shipped import find_recipe, is_file, recipe_folders
from hookflat.recipe.tables import flat
from hookflat.recipe.toml import out_of_bounds, read_toml
from hookflat.records.disk import replacing
from hookflat.records.texts import read_json
from hookflat.studies.checkpoints import CheckpointJob, CheckpointRows, checkpoint_jobs
from hookflat.studies.jobs import Job
from hookflat.terminal import clipped, shortened

PLAN = "plan.json"
"""In a study's folder, the names of all its runs in order, for who looks at it without its recipe."""

MOST_RUNS = 10_000
"""Of a study: a grid with one list of values too many has millions, and would be unfolded for hours."""

AnyJob = Job | CheckpointJob


@dataclass(eq=False)
class StudyOptions:
    """The table `[study]`."""

    runs: Annotated[list[str], Field(description="recipes, each with every seed")] = field(default_factory=list)
    seeds: Annotated[list[int], Field(description="of every run", min_length=1)] = field(default_factory=lambda: [0])
    folder: Annotated[str, Field(description="of the runs; {study} is filled in")] = "runs/{study}"
    protocol: Annotated[str, Field(description="hookflat eval's, after each run; none: the recipe's own measures")] = ""
    which: Annotated[list[str], Field(description="networks that the protocol measures, where a run has them")] = field(
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
    learns_from: Annotated[
        dict[str, str],
        Field(description="options that name a run's folder to recipes of the study, whose first seed is made before"),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A checked study: its name, its folder, its jobs in order."""

    name: str
    folder: Path
    jobs: list[AnyJob]


@dataclass(frozen=True)
class Entry:
    """A run of a written plan: its folder, and the file that says that everything is measured."""

    folder: Path
    results: Path


def write_plan(study: Study) -> None:
    """Note the runs in the study's folder."""
    runs = [{"name": job.name, "results": str(job.results.relative_to(study.folder))} for job in study.jobs]
    study.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(study.folder / f".{PLAN}.lock"), replacing(study.folder / PLAN) as beside:
        beside.write_text(json.dumps({"name": study.name, "runs": runs}, indent=1), encoding="utf-8")


def read_plan(folder: Path) -> dict[str, Entry]:
    """Every run of the plan that `write_plan` left in a study's folder, by name; empty where there is none."""
    try:
        written = read_json(folder / PLAN)
        return {run["name"]: Entry(folder / run["name"], folder / run["results"]) for run in written["runs"]}
    except (ValueError, KeyError, TypeError):
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
    path, plugins = _file(study), list(plugins)
    options, grids, checkpoints = _tables(path)
    place = folder or Path(options.folder.replace("{study}", path.stem))
    given = _flat(dict(assignment(o) for o in overrides))
    fixed = {"run.seed", *(key for grid in grids for key in [*grid.values, *grid.learns_from])}
    if clash := sorted(given.keys() & fixed):
        raise UserError(f"--set {clash[0]}: the study itself sets it (seeds, or a grid)")
    values = _flat(options.set) | given
    base = Job("", "", 0, place, (*options.overlays, *overlays), (), protocol or options.protocol, tuple(options.which))
    base = replace(base, measure=tuple(_flat(options.measure).items()), plugins=tuple(map(str, plugins)))
    _check_size(path, options, grids)
    jobs: list[AnyJob] = []
    for seed in options.seeds:  # every row once before any row twice
        for grid in [*(Grid(recipe) for recipe in options.runs), *grids]:
            for point in _points(grid.values):
                jobs += _jobs(base, place, grid, values | point, point, seed, options.seeds[0])
    if checkpoints and not jobs and base.overlays:
        raise UserError(f"--with {base.overlays[0]}: a study of checkpoints trains nothing; --set sets values of each")
    for i, table in enumerate(checkpoints):
        jobs += checkpoint_jobs(
            table,
            place=place,
            which=base.which,
            protocol=base.protocol,
            overrides=dict(base.measure) | given,
            plugins=base.plugins,
            where=f"{path}: study.checkpoints[{i}]",
        )
    _check(path, options, jobs)
    return Study(path.stem, place, jobs)


def _check_size(path: Path, options: StudyOptions, grids: Sequence[Grid]) -> None:
    """Raises UserError for more runs than anyone can make."""
    points = [math.prod(map(len, grid.values.values())) * (1 + len(grid.rescale)) for grid in grids]
    if (count := len(options.seeds) * (len(options.runs) + sum(points))) > MOST_RUNS:
        wide = f" (study.grid[{points.index(max(points))}] alone: {shortened(max(points))} a seed)" if points else ""
        raise UserError(
            f"{path}: has {shortened(count)} runs{wide}, more than {MOST_RUNS}: give fewer values, or several studies"
        )


def _check(path: Path, options: StudyOptions, jobs: Sequence[AnyJob]) -> None:
    """Raises UserError for names that are there twice, and every recipe, protocol or checkpoint that is wrong."""
    names = Counter(job.name for job in jobs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{path}: names {min(twice)!r} twice")
    if not jobs:
        raise UserError(f"{path}: a study needs runs = [...], [[study.grid]] or [[study.checkpoints]]")
    alone = {job.folder for job in jobs if isinstance(job, Job) and not job.learns_from}
    for job in jobs:
        if isinstance(job, Job) and (missing := [source.name for source in job.learns_from if source not in alone]):
            raise UserError(
                f"{path}: {job.name} learns from {missing[0]}, which is none of the study's runs, or learns itself"
            )
        if isinstance(job, CheckpointJob):
            try:
                job.resolved()
            except UserError as error:
                raise UserError(f"{path}: checkpoint {job.name}: {error}") from None
        elif job.seed == options.seeds[0] and not job.rescaled:  # the others are no other recipes
            tables = job.resolved()
            if job.protocol:
                job.protocol_tables(tables)
    for which in options.which:
        if which not in ("last", "best", "live") and not which.isdigit():
            raise UserError(f"{path}: study.which: {which!r} should be last, best, live or the number of an epoch")


def _jobs(
    base: Job, place: Path, grid: Grid, values: dict[str, Any], point: dict[str, Any], seed: int, first: int
) -> Iterator[Job]:
    """A run of a grid, and its rescaled networks. `first`: the seed of the runs that it learns from."""
    short = [f"{key.split('.')[-1]}={plain(value)}" for key, value in point.items()]
    name = "-".join([Path(grid.recipe).stem, *short, str(seed)])
    sources = {option: place / f"{Path(recipe).stem}-{first}" for option, recipe in grid.learns_from.items()}
    chosen = tuple((values | {option: str(source) for option, source in sources.items()} | {"run.seed": seed}).items())
    job = replace(base, name=name, recipe=grid.recipe, seed=seed, folder=place / name, overrides=chosen)
    job = replace(job, learns_from=tuple(sources.values()))
    yield job
    for factor in grid.rescale:
        scaled = f"{name}-x{factor:g}"
        yield replace(job, name=scaled, folder=place / scaled, which=("last",), rescaled=(job.folder, factor))


def _file(study: str | Path) -> Path:
    if is_file(Path(study)):
        return Path(study)
    name = str(study).removeprefix("recipes/").removeprefix("studies/")
    try:
        return find_recipe(f"studies/{name}")
    except UserError:
        known = sorted({p.stem for _, folder in recipe_folders() for p in (folder / "studies").glob("*.toml")})
        raise UserError(
            f"no study {clipped(str(study))}: neither a file nor a shipped study{nearest(name, known)}"
        ) from None


def _tables(path: Path) -> tuple[StudyOptions, list[Grid], list[CheckpointRows]]:
    tables, _ = read_toml(path)
    for name in [name for name in tables if name != "study"]:
        raise UserError(f"{path}: unknown table [{clipped(name)}]{nearest(name, ['study'])}")
    options = tables.get("study", {})
    if why := out_of_bounds(options):
        raise UserError(f"{path}: study: {why}")
    if not isinstance(options, dict):
        raise UserError(f"{path}: study: should be a table [study], not {shortened(options)}")
    several = {name: options.pop(name, []) for name in ("grid", "checkpoints")}
    for name, each in several.items():
        if not isinstance(each, list) or not all(isinstance(table, dict) for table in each):
            raise UserError(f"{path}: study.{name}: should be tables [[study.{name}]], not {shortened(each)}")
    grids, checkpoints = (
        [_built(cls, table, f"{path}: study.{name}") for table in several[name]]
        for cls, name in ((Grid, "grid"), (CheckpointRows, "checkpoints"))
    )
    return _built(StudyOptions, options, f"{path}: study"), grids, checkpoints


def _built(cls: Any, table: dict[str, Any], where: str) -> Any:
    try:
        return build(cls, table)
    except InvalidOptions as error:
        raise UserError("\n".join(f"{'.'.join([where, *path])}: {message}" for path, message in error.faults)) from None


def _points(values: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of a grid; one empty one without a grid."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Tables among the values as dotted keys."""
    return {".".join(path): value for path, value in flat(values)}
