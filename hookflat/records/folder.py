"""A run's folder: recipe, environment, metrics, checkpoints, weights, results. The one place that writes files."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor, nn

from hookflat.errors import UserError
from hookflat.recipe.loading import Recipe, differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKAGES = ("hookflat", "torch", "torchvision", "timm", "accelerate", "pluggy", "datasets", "pyautoattack", "numpy")


class RunFolder:
    """The files of one run. Only the main process writes (`main=False` turns every write into nothing)."""

    def __init__(self, path: Path, *, main: bool = True) -> None:
        self.path, self.main = path, main
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.results = path / "eval.json"
        self.best = self.checkpoints / "best.safetensors"
        self.unfinished = path / ".unfinished"

    def prepare(self, recipe: Recipe, plugin_files: tuple[Path, ...] = ()) -> None:
        """Make the folder, or check that the one there belongs to the same recipe.

        Raises UserError when it cannot be written, or holds another recipe's run.
        """
        self.same_recipe(recipe)
        if not self.main:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.last_checkpoint() is None:
                self._replace("recipe.toml", recipe.to_toml())
            self._replace("environment.json", json.dumps(environment(plugin_files), indent=2))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write the run's folder: {error.strerror or error} (choose another with --out)"
            ) from error

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
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0.5)  # somebody may be looking whether it is held
        except Timeout:
            raise UserError(f"{self.path} is in use: another process is working in it") from None
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write the run's folder: {error.strerror or error} (choose another with --out)"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def in_use(self) -> bool:
        """Whether a process is working in the folder."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock").acquire(timeout=0):
                return False
        except Timeout:
            return True

    def same_recipe(self, recipe: Recipe) -> None:
        """Raises UserError when the folder holds a begun run of another recipe, with the values that differ."""
        there = self.path / "recipe.toml"
        if self.last_checkpoint() is None or not there.exists():
            return
        changed = differences(tomllib.loads(there.read_text(encoding="utf-8")), recipe.tables)
        if changed:
            shown = "; ".join(changed[:6]) + (" ..." if len(changed) > 6 else "")
            raise UserError(
                f"{self.path} holds the run of another recipe ({shown}): choose another folder with --out, or remove it"
            )

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        if self.main:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines() if line]

    def written(self) -> int:
        """The length of metrics.jsonl in bytes."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def rewind(self, length: int) -> None:
        """Cut metrics.jsonl back to where it was at a checkpoint."""
        if self.main and self.metrics.exists():
            os.truncate(self.metrics, length)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self.checkpoints.glob("step-*"), default=None)

    def checkpoint_beside(self) -> Path:
        """An empty folder to write the next checkpoint in; `finish_checkpoint` moves it into place."""
        beside = self.checkpoints / ".writing"
        if self.main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        return beside

    def finish_checkpoint(self, step: int, epoch: int) -> None:
        """Rename the written checkpoint into place (atomic), then drop the older ones."""
        if not self.main:
            return
        place = self.checkpoints / f"step-{step:09d}-epoch-{epoch:06d}"
        if not place.exists():
            (self.checkpoints / ".writing").rename(place)
        for old in self.checkpoints.glob("step-*"):
            if old != place:
                shutil.rmtree(old)

    def save_weights(self, file: Path, model: nn.Module, **about: Any) -> None:
        """Weights as safetensors, written beside and renamed into place; `about` goes into its metadata."""
        if self.main:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".writing")
            tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
            save_file(tensors, beside, metadata={"hookflat": json.dumps(about)})  # one key: several have no fixed order
            beside.replace(file)

    def snapshot(self, epoch: int) -> Path:
        """Where the weights after an epoch are kept."""
        return self.checkpoints / f"epoch-{epoch:06d}.safetensors"

    def keep(self, name: str, what: str | Figure | dict[str, Tensor]) -> None:
        """A text in `logs/`, a figure in `figures/` as PNG and SVG, a table of columns in `tables/` as parquet."""
        if not self.main:
            return
        if isinstance(what, str):
            self._inside("logs", f"{name}.txt").write_text(what, encoding="utf-8")
        elif isinstance(what, dict):
            import pyarrow as pa
            from pyarrow import parquet

            table = pa.table({column: values.cpu().numpy() for column, values in what.items()})
            parquet.write_table(table, self._inside("tables", f"{name}.parquet"))
        else:
            what.savefig(self._inside("figures", f"{name}.png"))
            what.savefig(self._inside("figures", f"{name}.svg"), metadata={"Date": None})

    def _inside(self, folder: str, file: str) -> Path:
        (self.path / folder).mkdir(exist_ok=True)
        return self.path / folder / file

    def save_results(self, results: dict[str, Any]) -> None:
        """Write eval.json; its presence says that everything is measured."""
        if self.main:
            self._replace("eval.json", json.dumps(results, indent=2))
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def load_results(self) -> dict[str, Any] | None:
        """eval.json, where the run is complete."""
        return json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else None

    def _replace(self, name: str, text: str) -> None:
        if self.main:
            beside = self.path / f".{name}.writing"
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path / name)


def environment(plugin_files: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Versions, code revision, hardware and command line."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "plugin_files": {str(f): f.read_text(encoding="utf-8") for f in plugin_files},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision of hookflat's own clone, "+" behind it when there are changes; None outside a clone."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        if not (root / ".git").exists():
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
