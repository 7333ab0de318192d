"""A run's folder: recipe, environment, metrics, checkpoints, weights, results. The one place that knows its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout
from pydantic import ValidationError

from hookflat.errors import UserError
from hookflat.recipe.defaults import differences
from hookflat.recipe.recipe import Recipe
from hookflat.recipe.tables import as_json
from hookflat.records.checkpoints import METRICS, RECIPE, Checkpoints
from hookflat.records.disk import has_failed, replacing
from hookflat.records.environment import changed_code, changed_versions, environment, foreign_plugins
from hookflat.records.results import NetworkResults, Results, first_fault
from hookflat.records.texts import DamagedError, read_json, read_lines, read_toml

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

NETWORKS = {
    "last": "model.safetensors",
    "best": "checkpoints/best.safetensors",
    "live": "model_in_training.safetensors",
}
"""Networks of a run folder; a number is the one kept after that epoch."""


class Label(NamedTuple):
    """What a study says of a network that was trained before: a row's name, its method, how its training ended."""

    name: str
    method: str
    early_stopped: bool = False


class RunFolder:
    """The files of one run. Only the main process writes (`main=False` turns every write into nothing)."""

    def __init__(self, path: Path, *, main: bool = True) -> None:
        self.path, self.main = path, main
        self.recipe = path / "recipe.toml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "eval.json"
        self.label = path / "checkpoint.json"
        self.checkpoints = path / "checkpoints"
        self.resumable = Checkpoints(self.checkpoints)
        self.figures = path / "figures"
        self.trackers = path / "tracking"
        self.unfinished = path / ".unfinished"
        self.undrawn = path / ".undrawn"

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def is_run(self) -> bool:
        """Whether it claims to be a run's folder."""
        return self.recipe.is_file() or self.results.is_file()

    @property
    def log(self) -> Path:
        """What a study's run said, beside its folder."""
        return self.path.with_name(f"{self.path.name}.log")

    def read_recipe(self) -> dict[str, Any]:
        """The resolved tables. Raises UserError where there are none, or none that can be read."""
        if not self.recipe.is_file():
            raise UserError(f"{self.path} is no run folder: it has no {self.recipe.name}")
        if tables := read_toml(self.recipe):
            return tables
        raise DamagedError(f"{self.recipe} cannot be read: it is empty")

    def read_results(self) -> Results | None:
        """The results, where the run is complete. Raises UserError where they cannot be read."""
        return Results.read(self.results) if self.results.exists() else None

    def whole_results(self, say: Callable[[str], None]) -> Results | None:
        """The results, where the run is complete; damaged ones are moved aside, and `say` is told."""
        try:
            return self.read_results()
        except DamagedError as error:
            if self.main:
                self.results.replace(self.results.with_name(f"{self.results.name}.damaged"))
            say(f"{error}: moved aside, and measured again")
            return None

    def read_label(self) -> Label | None:
        """What a study says of the network measured here, where one does. Raises UserError where it cannot be read."""
        if not self.label.exists():
            return None
        try:
            return Label(**read_json(self.label))
        except TypeError as error:
            raise DamagedError(f"{self.label} is not what hookflat writes: {error}") from None

    def evaluations(self) -> list[RunFolder]:
        """What `hookflat eval` measured of this run, a folder for each protocol."""
        return [RunFolder(file.parent) for file in sorted(self.path.glob("eval/*/eval.json"))]

    def evaluation(self, name: str) -> RunFolder:
        """Where `hookflat eval` puts what it measures."""
        return RunFolder(self.path / "eval" / name)

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, but for those that are damaged."""
        return read_lines(self.metrics)[0]

    def table(self, name: str) -> Path:
        """Where a table of columns is kept (`keep`)."""
        return self.path / "tables" / f"{name}.parquet"

    def network(self, which: str) -> Path | None:
        """The file of a network: "last", "best", "live", or the number of an epoch; None where there is none."""
        known = which in NETWORKS or which.isdigit()
        return file if known and (file := self._file(which)).is_file() else None

    def _file(self, which: str) -> Path:
        return self.path / NETWORKS[which] if which in NETWORKS else self.snapshot(int(which))

    def networks(self) -> list[str]:
        """All networks that are there."""
        epochs = [str(int(f.stem.removeprefix("epoch-"))) for f in sorted(self.checkpoints.glob("epoch-*.safetensors"))]
        return [which for which in NETWORKS if self.network(which)] + epochs

    def networks_of(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Those of the networks asked for that are there. Raises UserError where none is."""
        if present := tuple(which for which in asked if self.network(which)):
            return present
        there = self.networks()
        hint = f"it has {', '.join(there)}" if there else "its training is not finished"
        raise UserError(f"{self.path} has no network {', '.join(asked)}: {hint}")

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, whole or damaged since."""
        return max(self.resumable.all(), default=None)

    def last_epoch(self) -> int | None:
        """The epoch of the newest checkpoint."""
        checkpoint = self.last_checkpoint()
        return int(checkpoint.name.rpartition("-")[2]) if checkpoint else None

    # --- beginning ----------------------------------------------------------------------------------------------------

    def prepare(self, recipe: Recipe) -> list[str]:
        """Make the folder, or check that the one there belongs to the same recipe.

        Returns what has changed since the run was worked on, in words: code of plugins, and versions where it goes on.
        Raises UserError when it cannot be written, or holds another recipe's run.
        """
        begun, files = self.same_recipe(recipe), recipe.foreign_code()
        if not self.main:
            return []
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            if self.results.exists():  # its record says what made it
                return self.changed_code(files)
            before, now = self.made_by() if begun else {}, environment(files, recipe.packages())
            changed = self.changed_code(files) + changed_versions(before, now) if before else []
            if not begun:
                self._replace(self.recipe, recipe.to_toml())
            earlier = before.get("changed")
            if all_of_it := [*(earlier if isinstance(earlier, list) else []), *changed]:
                now["changed"] = all_of_it
            self._replace(self.environment, json.dumps(now, indent=2))
            return changed

    def made_by(self) -> dict[str, Any]:
        """The record of what made it; empty where there is none that can be read."""
        try:
            known = read_json(self.environment) if self.environment.exists() else {}
        except DamagedError:
            return {}
        return known if isinstance(known, dict) else {}

    def made_with(self) -> str:
        """The files and packages of others whose plugins it may need, in words; "" where none is known."""
        return foreign_plugins(self.made_by())

    def changed_code(self, files: dict[str, Path]) -> list[str]:
        """Which of these files of plugins have other code than those that made it, in words."""
        return changed_code(self.made_by(), files)

    @contextmanager
    def held(self) -> Generator[None]:
        """Nobody else writes into the folder inside, however a process that did has ended.

        Raises UserError when somebody does.
        """
        if not self.main:
            yield
            return
        lock = FileLock(self.path / ".lock")
        try:
            with self._writable():
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / ".ended").unlink(missing_ok=True)
                lock.acquire(timeout=0.5)  # somebody may be looking whether it is held
        except Timeout:
            raise UserError(f"{self.path} is in use: another process is working in it") from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _writable(self) -> Generator[None]:
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            if has_failed(error):
                raise
            raise UserError(
                f"{self.path}: cannot write the run's folder: {error.strerror or error} (choose another with --out)"
            ) from error

    def first_to_say(self) -> bool:
        """Whether no other of the launch's processes was told so before: one of them says why all of them end."""
        try:
            (self.path / ".ended").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            return self.main
        return True

    def in_use(self) -> bool:
        """Whether a process is working in the folder."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock").acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # on a disk that is read-only nobody works
            return False

    def same_recipe(self, recipe: Recipe) -> bool:
        """Whether a run of this recipe is begun, and the recipe is whole; where it is not, the checkpoint's counts.

        Raises UserError when the folder holds a begun or a complete run of another recipe, with the values that differ.
        """
        if self.last_checkpoint() is None and not self.results.exists():
            return False
        damaged = None
        try:
            changed = differences(self.read_recipe(), recipe.tables, recipe.catalogue)
        except UserError as error:
            damaged, changed = error, ["all of it"]
        if not changed:
            return True
        try:
            kept = self.resumable.usable()[0]
        except UserError:
            kept = None
        if kept is not None:  # what is beside the run may have been cut or changed
            changed = differences(read_toml(kept / RECIPE), recipe.tables, recipe.catalogue)
        elif damaged:
            raise damaged
        if changed:
            shown = "; ".join(changed[:6]) + (" ..." if len(changed) > 6 else "")
            raise UserError(
                f"{self.path} holds the run of another recipe ({shown}): choose another folder with --out, or remove it"
            )
        return False

    def save_data(self, about: dict[str, Any]) -> None:
        """Which examples are trained and measured on."""
        if self.main:
            lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()]
            self._replace(self.data, "{\n" + ",\n".join(lines) + "\n}\n")

    # --- metrics ------------------------------------------------------------------------------------------------------

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        if self.main:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(as_json(record) + "\n")

    def rewind(self, checkpoint: Path | None) -> bool:
        """Take metrics.jsonl back to where it was at a checkpoint; whether it still held all that it held then."""
        then = (checkpoint / METRICS).read_bytes() if checkpoint else b""
        now = self.metrics.read_bytes() if self.metrics.exists() else b""
        if self.main and now != then:
            with replacing(self.metrics) as beside:
                beside.write_bytes(then)
        return now.startswith(then)

    # --- checkpoints and weights --------------------------------------------------------------------------------------

    @contextmanager
    def new_checkpoint(self, recipe: Recipe, step: int, epoch: int) -> Generator[Path]:
        """A folder to write a checkpoint in; recipe, metrics and checksums come with it. The last two are kept."""
        beside = self.resumable.begin()
        try:
            yield beside
            (beside / RECIPE).write_text(recipe.to_toml(), encoding="utf-8")
            (beside / METRICS).write_bytes(self.metrics.read_bytes() if self.metrics.exists() else b"")
            self.resumable.finish(step, epoch)
        finally:
            shutil.rmtree(beside, ignore_errors=True)  # of one that failed: it takes room

    def snapshot(self, epoch: int) -> Path:
        """Where the weights after an epoch are kept."""
        return self.checkpoints / f"epoch-{epoch:06d}.safetensors"

    def save_network(self, which: str, model: nn.Module, /, **about: Any) -> None:
        """Weights of "last", "best", "live" or an epoch, with `about` in the file's metadata."""
        file = self._file(which)
        if self.main:
            from hookflat.records.weights import save_weights  # torch, which a look at a folder does without

            save_weights(file, model, **about)

    def load_network(self, which: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and what is known about them. Raises UserError where there are none, or they are damaged."""
        from hookflat.records.weights import load_weights

        [which] = self.networks_of([which])
        file = self._file(which)
        weights, about = load_weights(file)
        try:
            NetworkResults.model_validate(about, strict=True)
        except ValidationError as error:
            raise UserError(f"{file} is not what hookflat writes: its metadata: {first_fault(error)}") from None
        return weights, about

    # --- results ------------------------------------------------------------------------------------------------------

    def keep(self, name: str, what: str | Figure | dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
        """A text in `logs/`, a figure in `figures/` as PNG and SVG, a table of columns in `tables/` as parquet.

        `about`: into the metadata of the table.
        """
        if not self.main:
            return
        if isinstance(what, str):
            self._replace(self.path / "logs" / f"{name}.txt", what)
        elif isinstance(what, dict):
            import pyarrow as pa
            from pyarrow import parquet

            table = pa.table({column: values.cpu().numpy() for column, values in what.items()})
            table = table.replace_schema_metadata({"hookflat": as_json(about or {})})
            with replacing(self.table(name)) as beside:
                parquet.write_table(table, beside)
        else:
            self.draw({name: what})

    def draw(self, figures: dict[str, Figure]) -> None:
        """Figures, as PNG and SVG."""
        for name, figure in figures.items() if self.main else ():
            with replacing(self.figures / f"{name}.png") as beside:
                figure.savefig(beside, format="png")
            with replacing(self.figures / f"{name}.svg") as beside:
                figure.savefig(beside, format="svg", metadata={"Date": None})

    def save_results(self, results: Results) -> None:
        """Write eval.json; its presence says that everything is measured."""
        if self.main:
            self._replace(self.results, results.to_json())
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def save_label(self, label: Label) -> None:
        """Write what a study says of the network measured here, where it says another."""
        text = as_json(label._asdict())
        if not self.label.exists() or self.label.read_text(encoding="utf-8") != text:
            self._replace(self.label, text)

    def _replace(self, file: Path, text: str) -> None:
        with replacing(file) as beside:
            beside.write_text(text, encoding="utf-8")
