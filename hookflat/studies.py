"""Studies: many recipes, seeds and hyper-parameters, trained and measured alike in one folder.

A study is data, like a recipe. Every run is a folder of its own; what is complete and unchanged is left alone, what was
cut off goes on, and a lock beside each folder keeps two studies from making the same run twice.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from hookflat.errors import UserError
from hookflat.options import InvalidOptions, build, nearest
from hookflat.plugins import Catalogue
from hookflat.recipe import differences, flat, load
from hookflat.records import RunFolder
from hookflat.shipped import find_recipe

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
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def measures(self) -> Path:
        """The folder of what the protocol measures."""
        return self.folder / "eval" / "-".join([Path(self.protocol).stem, *self.which])

    @property
    def results(self) -> Path:
        """The file that says that everything is measured."""
        return (self.measures if self.protocol else self.folder) / "eval.json"

    def resolved(self, catalogue: Catalogue | None = None) -> dict[str, Any]:
        """The tables of its recipe. Raises UserError when they are wrong."""
        known = catalogue or Catalogue([Path(p) for p in self.plugins])
        return load(self.recipe, overlays=self.overlays, overrides=dict(self.overrides), catalogue=known).tables

    def protocol_tables(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The `[eval]` of its protocol on a run of `recipe`. Raises UserError when it is wrong."""
        from hookflat.evaluation import protocol_file

        kept = {key: value for key, value in recipe["eval"].items() if not isinstance(value, dict)}
        catalogue = Catalogue([Path(p) for p in self.plugins])
        overlays = [protocol_file(self.protocol)]
        loaded = load(recipe | {"eval": kept}, overlays=overlays, overrides=dict(self.measure), catalogue=catalogue)
        return loaded.tables["eval"]

    def changes(self) -> list[str]:
        """What is another in the folder's recipe than in the study's; empty where nothing was begun."""
        there = self.folder / "recipe.toml"
        if not there.exists() or not (self.rescaled or self.results.exists() or self._checkpoints()):
            return []
        return differences(tomllib.loads(there.read_text(encoding="utf-8")), self.resolved())

    def protocol_changes(self) -> list[str]:
        """What is another in the protocol that measured the folder than in the study's."""
        there = self.measures / "recipe.toml"
        if not self.protocol or not there.exists():
            return []
        old = tomllib.loads(there.read_text(encoding="utf-8"))["eval"]
        return differences({"eval": old}, {"eval": self.protocol_tables(self.resolved())})

    def state(self) -> State:
        """What there is of it."""
        if RunFolder(self.folder).in_use() or RunFolder(self.measures).in_use():
            return "elsewhere"
        if self.changes() or self.protocol_changes():
            return "changed"
        if self.results.exists():
            return "done"
        return "begun" if self._checkpoints() else "todo"

    def _checkpoints(self) -> list[Path]:
        return list(self.folder.glob("checkpoints/step-*"))

    def commands(self, processes: int = 1) -> Iterator[list[str]]:
        """What makes it, one after another: training (or rescaling), then measuring."""
        hookflat = [sys.executable, "-m", "hookflat"]
        plugins = _options("--plugin", self.plugins)
        if self.rescaled:
            source, factor = self.rescaled
            if not self.folder.exists():
                yield [*hookflat, "rescale", str(source), f"{factor:g}", "--out", str(self.folder), *plugins]
        else:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            started = [sys.executable, *launch, "-m", "hookflat"] if processes > 1 else hookflat
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


def read_study(
    study: str | Path,
    *,
    overlays: Iterable[str] = (),
    overrides: Iterable[str] = (),
    plugins: Iterable[Path] = (),
    folder: Path | None = None,
) -> Study:
    """Read and check a study and every recipe of it.

    `overlays`, `overrides`, `plugins`: for every run, after the study's own. Raises UserError for everything wrong.
    """
    from hookflat.merging import assignment

    path, plugins = _found(study), list(plugins)
    options, grids = _tables(path)
    place = folder or Path(options.folder.replace("{study}", path.stem))
    given = _flat(dict(assignment(o) for o in overrides))
    fixed = {"run.seed", *(key for grid in grids for key in grid.values)}
    if clash := sorted(given.keys() & fixed):
        raise UserError(f"--set {clash[0]}: the study itself sets it (seeds, or a grid)")
    values = _flat(options.set) | given
    base = Job("", "", 0, place, (*options.overlays, *overlays), (), options.protocol, tuple(options.which))
    base = replace(base, measure=tuple(_flat(options.measure).items()), plugins=tuple(map(str, plugins)))
    jobs = []
    for grid in [*(Grid(recipe) for recipe in options.runs), *grids]:
        for point in _points(grid.values):
            for seed in options.seeds:
                jobs += _jobs(base, place, grid, values | point, point, seed)
    names = [job.name for job in jobs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: names {sorted(twice)[0]!r} twice")
    if not jobs:
        raise UserError(f"{path}: a study needs runs = [...] or [[study.grid]]")
    catalogue = Catalogue(tuple(plugins))
    for job in jobs:
        if job.seed == options.seeds[0] and not job.rescaled:  # the others are no other recipes
            tables = job.resolved(catalogue)
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


def make(
    study: Study,
    *,
    workers: int = 1,
    processes: int = 1,
    redo: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, State]:
    """Train and measure what is missing, `workers` runs at once on this machine; the state of every run at the end.

    A failed run does not stop the others. `redo`: move runs of a changed recipe aside and make them anew.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    states: dict[str, State] = {}
    free: Queue[int] = Queue()
    for worker in range(workers):
        free.put(worker)

    def in_turn(job: Job) -> State:
        worker = free.get()
        try:
            return run_job(job, environment=share(worker, workers, processes), processes=processes, redo=redo, say=say)
        finally:
            free.put(worker)

    for wave in (False, True):  # rescaled networks come after the runs that they are made from
        jobs = [job for job in study.jobs if bool(job.rescaled) == wave]
        with ThreadPoolExecutor(workers) as pool:
            turns = [pool.submit(in_turn, job) for job in jobs]
            try:
                states |= {job.name: turn.result() for job, turn in zip(jobs, turns, strict=True)}
            except KeyboardInterrupt:
                for turn in turns:
                    turn.cancel()
                raise
    return states


def run_job(
    job: Job,
    *,
    environment: dict[str, str] | None = None,
    processes: int = 1,
    redo: bool = False,
    say: Callable[[str], None] = print,
) -> State:
    """Make one run, unless it is done or being made elsewhere."""
    try:
        lock = FileLock(job.folder.with_name(f".{job.folder.name}.lock"))
        with lock.acquire(timeout=0):
            state = job.state()
            if state == "changed" and redo:
                _move_aside(job.folder if job.changes() else job.measures)
                state = job.state()
            if state in ("done", "changed", "elsewhere"):
                return state
            began = time.time()
            for command in job.commands(processes):
                if _status(command, job.log, environment or {}):
                    say(f"failed   {job.name}: {_last_line(job.log)} (see {job.log})")
                    return "failed"
            seconds = time.time() - began
            with (job.folder.parent / "times.jsonl").open("a", encoding="utf-8") as times:
                was = "rescaled" if job.rescaled else state
                times.write(json.dumps({"run": job.name, "seconds": round(seconds, 1), "was": was}) + "\n")
            say(f"done     {job.name}: {_duration(seconds)}")
            return "done"
    except Timeout:
        return "elsewhere"


def _status(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """The exit status of a command whose output goes to the end of `log`."""
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, stderr=file, env=os.environ | environment, check=False).returncode


def plan(study: Study) -> tuple[dict[str, State], float | None]:
    """The state of every run, and how many hours one worker needs for the rest, from the runs that are done."""
    states: dict[str, State] = {job.name: job.state() for job in study.jobs}
    times = study.folder / "times.jsonl"
    whole = []
    for line in times.read_text(encoding="utf-8").splitlines() if times.exists() else ():
        with suppress(ValueError, KeyError):  # an estimate should not fail on a line that was cut off
            entry = json.loads(line)
            whole += [entry["seconds"]] if entry["was"] == "todo" else []
    left = sum(states[job.name] in ("todo", "begun") for job in study.jobs if not job.rescaled)
    return states, left * sum(whole) / len(whole) / 3600 if whole else None


def share(worker: int, workers: int, processes: int = 1) -> dict[str, str]:
    """A worker's part of this machine: its share of the cores, and a GPU for each process, by turns.

    Raises UserError where `processes` are more than there are GPUs.
    """
    gpus = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g] or _gpus()
    if gpus and processes > len(gpus):
        raise UserError(f"--processes {processes}: there are {len(gpus)} GPUs")
    cores = max(1, len(os.sched_getaffinity(0)) // (workers * processes))
    mine = {"OMP_NUM_THREADS": str(cores)} if workers * processes > 1 else {}
    if not gpus:
        return mine | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})
    turns = [gpus[(worker * processes + i) % len(gpus)] for i in range(processes)]
    return mine | ({"CUDA_VISIBLE_DEVICES": ",".join(turns)} if workers * processes > 1 else {})


def submit(
    study: Study, *, cluster: str | None = None, processes: int = 1, redo: bool = False, **slurm: Any
) -> list[Any]:
    """One cluster job for each run that is missing, with its rescaled networks, through `submitit`.

    `cluster`: Slurm where nothing is said; "local" runs them here. `slurm`: parameters of `submitit.AutoExecutor`, as
    timeout_min, gpus_per_node, slurm_partition. Raises UserError without submitit, Slurm, or a time limit.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError('--launcher slurm needs submitit: pip install "hookflat[slurm]"') from error
    if cluster is None and shutil.which("srun") is None:
        raise UserError("--launcher slurm: there is no srun on this machine")
    if not slurm.keys() & {"timeout_min", "slurm_time"}:
        raise UserError("--launcher slurm: say how long a run may take, --slurm timeout_min=600")
    study.folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(folder=study.folder / "slurm", cluster=cluster or "slurm")
    executor.update_parameters(name=f"hookflat {study.name}", **slurm)
    submitted = []
    for source in (job for job in study.jobs if not job.rescaled):
        family = [source, *(job for job in study.jobs if job.rescaled and job.rescaled[0] == source.folder)]
        leave = {"done", "elsewhere"} if redo else {"done", "elsewhere", "changed"}
        if any(job.state() not in leave for job in family):
            submitted.append(executor.submit(_one_after_another, family, processes, redo))
    return submitted


def _one_after_another(jobs: list[Job], processes: int, redo: bool) -> list[State]:
    environment = share(0, 1, processes)
    return [run_job(job, environment=environment, processes=processes, redo=redo) for job in jobs]


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


def _options(name: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (name, value)]


def _move_aside(folder: Path) -> None:
    """A folder to a name of its own beside it."""
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}~{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}~{number}"))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _gpus() -> Sequence[str]:
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
