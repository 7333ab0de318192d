"""One run of a study: what it is, what there is of it, and the commands that make it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hookflat.errors import UserError
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.defaults import differences
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import find_protocol
from hookflat.records.folder import RunFolder

CLUSTER = "slurm"
"""In a study's folder, what its jobs on a cluster say."""

State = Literal["done", "begun", "todo", "changed", "elsewhere", "failed"]


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
    learns_from: tuple[Path, ...] = ()

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
        tables = written(self.folder)
        if tables is None:
            return [f"{there} cannot be read"]
        return differences(tables, self.resolved(), catalogue_of(self.plugins))

    def protocol_changes(self) -> list[str]:
        """What is another in the protocol that measured the folder than in the study's."""
        there = RunFolder(self.measures).recipe
        if not self.protocol or not there.exists():
            return []
        tables = written(self.measures)
        if not tables or "eval" not in tables:
            return [f"{there} cannot be read"]
        now = self.protocol_tables(self.resolved())
        return differences({"eval": tables["eval"]}, {"eval": now}, catalogue_of(self.plugins))

    def state(self) -> State:
        """What there is of it."""
        if RunFolder(self.folder).in_use() or RunFolder(self.measures).in_use():
            return "elsewhere"
        if self.changes() or self.protocol_changes():
            return "changed"
        if measured(self.results.parent):
            return "done"
        return "begun" if self._begun() else "todo"

    def _begun(self) -> bool:
        return RunFolder(self.folder).last_checkpoint() is not None

    def waits_for(self) -> list[str]:
        """The runs that it learns from and that have no network yet."""
        return [source.name for source in self.learns_from if RunFolder(source).network("last") is None]

    def has_to_wait(self) -> bool:
        """Whether another process is making a run that it is made from."""
        sources = map(RunFolder, (*self.learns_from, *(self.rescaled or ())[:1]))
        return any(source.in_use() and source.network("last") is None for source in sources)

    def note(self) -> None:
        """Its folder says what it is."""

    def commands(self, processes: int = 1) -> Iterator[list[str]]:
        """What makes it, one after another: training (or rescaling), then measuring."""
        hookflat = [sys.executable, "-m", "hookflat"]
        plugins = as_options("--plugin", self.plugins)
        if self.rescaled:
            source, factor = self.rescaled
            if not self.folder.exists():
                yield [*hookflat, "rescale", str(source), f"{factor:g}", "--out", str(self.folder), *plugins]
        else:
            started = [*_launched(processes), "-m", "hookflat"] if processes > 1 else hookflat
            values = as_options("--set", (f"{key}={toml(value)}" for key, value in self.overrides))
            overlays = as_options("--with", self.overlays)
            yield [*started, "run", self.recipe, *overlays, *values, *plugins, "--out", str(self.folder)]
        if self.protocol:
            values = as_options("--set", (f"{key}={toml(value)}" for key, value in self.measure))
            which = as_options("--which", self.which)
            protocol = ["--protocol", self.protocol, "--out", str(self.measures)]
            yield [*hookflat, "eval", str(self.folder), *protocol, *which, *values, *plugins]


def measured(folder: Path) -> bool:
    """Whether all of its numbers are there; damaged ones are made again."""
    try:
        return RunFolder(folder).read_results() is not None
    except UserError:
        return False


def written(folder: Path) -> dict[str, Any] | None:
    """The tables of a recipe in a run's folder; None where it is damaged."""
    try:
        return RunFolder(folder).read_recipe()
    except UserError:
        return None


def toml(value: Any) -> str:
    """A number, string, boolean or list of them, as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def _launched(processes: int) -> list[str]:
    """`accelerate launch`; port 0 is a free one, and --multi_gpu is also what starts several processes on a CPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # the run itself sets these
    return [*launch, *plain, "--main_process_port", "0"]


def as_options(name: str, values: Iterable[str]) -> list[str]:
    """An option of the command line, given once for each value."""
    return [part for value in values for part in (name, value)]
