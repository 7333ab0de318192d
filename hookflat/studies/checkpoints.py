"""Rows of a study that are networks trained before: files of weights, run folders, networks of RobustBench."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hookflat.errors import UserError
from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint, recipe_of
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.defaults import differences
from hookflat.recipe.tables import flat
from hookflat.records.folder import Label, RunFolder
from hookflat.studies.jobs import State, as_options, measured, toml, written

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
"""What files of weights are called."""


@dataclass(eq=False)
class CheckpointRows:
    """One table `[[study.checkpoints]]`: networks that are given alike."""

    models: Annotated[
        list[str], Field(description="files (or a pattern), run folders, robustbench:ID, robustbench:DATASET/THREAT/*")
    ] = field(default_factory=list)
    name: Annotated[str, Field(description="of the row, where it is one; otherwise the file's or the folder's")] = ""
    method: Annotated[str, Field(description="what it was trained with; rows of one are taken together")] = ""
    early_stopped: Annotated[bool, Field(description="not the end of its training; marked in reports")] = False
    arch: Annotated[str | None, Field(description="as --arch of hookflat eval")] = None
    data: Annotated[str | None, Field(description="as --data")] = None
    normalize: Annotated[str, Field(description="as --normalize")] = "none"
    key: Annotated[str | None, Field(description="as --key")] = None
    set: Annotated[dict[str, Any], Field(description="values as --set, of its network and data above all")] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class CheckpointJob:
    """One network of a study, measured by `hookflat eval` into a folder of its own."""

    name: str
    folder: Path
    source: Checkpoint
    label: Label
    protocol: str
    overrides: tuple[tuple[str, Any], ...] = ()
    plugins: tuple[str, ...] = ()

    seed: ClassVar[int] = 0
    rescaled: ClassVar[None] = None
    learns_from: ClassVar[tuple[Path, ...]] = ()

    @property
    def recipe(self) -> str:
        """What it was given as."""
        return self.source.model

    @property
    def log(self) -> Path:
        """What measuring it said."""
        return RunFolder(self.folder).log

    @property
    def measures(self) -> Path:
        """The folder of what the protocol measures."""
        return self.folder

    def resolved(self) -> dict[str, Any]:
        """The tables that it is measured by. Raises UserError when something about it is not said, or wrong."""
        return recipe_of(self.source, self.protocol, (), dict(self.overrides), self.plugins, now=False).tables

    def changes(self) -> list[str]:
        """What is another in the folder than in the study; its label is none of it."""
        there = RunFolder(self.folder)
        if not there.recipe.exists():
            return []
        tables = written(self.folder)
        if tables is None:
            return [f"{there.recipe} cannot be read"]
        file = Path(self.source.model)
        if file.is_file() and there.results.exists() and file.stat().st_mtime > there.results.stat().st_mtime:
            return [f"{file} is younger than what was measured of it"]
        return differences(tables, self.resolved(), catalogue_of(self.plugins))

    def has_to_wait(self) -> bool:
        """It is made from no run."""
        return False

    def protocol_changes(self) -> list[str]:
        """None that `changes` has not."""
        return []

    @property
    def results(self) -> Path:
        """The file that says that everything is measured."""
        return RunFolder(self.folder).results

    def state(self) -> State:
        """What there is of it."""
        there = RunFolder(self.folder)
        if there.in_use():
            return "elsewhere"
        if self.changes():
            return "changed"
        return "done" if measured(self.folder) else "begun" if there.unfinished.exists() else "todo"

    def waits_for(self) -> list[str]:
        """Nothing."""
        return []

    def note(self) -> None:
        """Write its label beside its numbers: another one needs no measuring."""
        self.folder.mkdir(parents=True, exist_ok=True)
        RunFolder(self.folder).save_label(self.label)

    def commands(self, processes: int = 1) -> Iterator[list[str]]:
        """What measures it; `processes` are of trainings."""
        source = self.source
        said = {"--arch": source.arch, "--data": source.data, "--key": source.key}
        said |= {"--normalize": source.normalize if source.normalize != "none" else None}
        values = as_options("--set", (f"{key}={toml(value)}" for key, value in self.overrides))
        yield [
            *(sys.executable, "-m", "hookflat", "eval", source.model),
            *("--protocol", self.protocol, "--out", str(self.folder)),
            *as_options("--which", source.which),
            *(part for option, value in said.items() if value for part in (option, value)),
            *values,
            *as_options("--plugin", self.plugins),
        ]


def checkpoint_jobs(
    table: CheckpointRows,
    *,
    place: Path,
    which: Sequence[str],
    protocol: str,
    overrides: dict[str, Any],
    plugins: Sequence[str],
    where: str,
) -> Iterator[CheckpointJob]:
    """The rows of one table; a run folder gives one for each of the networks `which` that it has. Raises UserError."""
    if not protocol:
        raise UserError(f'{where}: checkpoints are measured by a protocol: say protocol = "paper", or --protocol')
    models = [model for given in table.models for model in _each(given, where)]
    if not models:
        raise UserError(f"{where}.models: say which, files, run folders or robustbench:ID")
    if table.name and len(models) > 1:
        raise UserError(f"{where}.name: {table.name!r} names {len(models)} networks: give each a table of its own")
    values = {".".join(path): value for path, value in flat(table.set)} | overrides
    for model in models:
        is_run = Path(model).is_dir()
        for network in RunFolder(Path(model)).networks_of(which) if is_run else ("last",):
            source = Checkpoint(model, (network,), table.arch, table.data, table.normalize, table.key)
            own = table.name or source.name.removeprefix("robustbench-")
            name = own if network == "last" else f"{own}-{network}"
            method = table.method or (_method_of(Path(model)) if is_run else "") or own
            label = Label(name=name, method=method, early_stopped=table.early_stopped or network != "last")
            yield CheckpointJob(name, place / name, source, label, protocol, tuple(values.items()), tuple(plugins))


def _each(given: str, where: str) -> list[str]:
    """What a pattern stands for: run folders and files; beside run folders, where logs lie, files of weights only."""
    if given.startswith(robustbench.PREFIX):
        return robustbench.matching(given) if has_magic(given) else [given]
    if not has_magic(given):
        return [given]
    paths = sorted(glob(given, recursive=True))
    runs = [path for path in paths if RunFolder(Path(path)).is_run]
    files = [path for path in paths if Path(path).is_file()]
    if not runs and not files:
        raise UserError(f"{where}.models: there is no run folder and no file {given}")
    return sorted(runs + [path for path in files if not runs or path.endswith(WEIGHTS)])


def _method_of(folder: Path) -> str:
    """The recipe that a run was trained by, "" where it did not end."""
    try:
        results = RunFolder(folder).read_results()
    except (UserError, json.JSONDecodeError):
        return ""
    return results.recipe if results else ""
