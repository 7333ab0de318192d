"""The checkpoints in a run's folder: the last two, each with the checksums of its files, which are written last.

A checkpoint is written beside the others and renamed into place, so a kill at any moment leaves only whole ones. What a
power cut or a bad disk does to one shows in its checksums; then the one before it serves, which the same steps lead
from: only time is lost.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from hookflat.errors import UserError
from hookflat.records.disk import synced

SUMS = "SHA256SUMS"
"""As `sha256sum --check` reads them."""
MODEL, STATE, METRICS, RECIPE = FILES = ("model.safetensors", "training.pt", "metrics.jsonl", "recipe.toml")
KEPT = 2


class Checkpoints:
    """Those of one run, by the step and epoch in their names."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.beside = place / ".writing"

    def all(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.place.glob("step-*-epoch-*"))

    def usable(self) -> tuple[Path | None, list[str]]:
        """The newest that is as it was written, None where none was; and the faults of those that are newer.

        Raises UserError where there are some, but none that can be used.
        """
        faults = []
        for checkpoint in reversed(self.all()):
            if (wrong := fault(checkpoint)) is None:
                return checkpoint, faults
            faults.append(f"{checkpoint} cannot be used: {wrong}")
        if faults:
            raise UserError(
                "; ".join(faults) + f". There is no other to go on from: put {self.place} back from a copy, or "
                "remove it to train from the beginning"
            )
        return None, []

    def begin(self) -> Path:
        """An empty folder to write the next one in."""
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return self.beside

    def finish(self, step: int, epoch: int) -> None:
        """Seal what was written and rename it into place, then drop all but the one before it."""
        _seal(self.beside)
        place = self.place / f"step-{step:09d}-epoch-{epoch:06d}"
        if place.exists():
            shutil.rmtree(place)  # damaged, or the run would not be here again
        self.beside.rename(place)
        synced(self.place)
        older = [other for other in self.all() if other < place]
        for other in self.all():
            if other not in (place, *older[1 - KEPT :]):
                shutil.rmtree(other)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: the first of its files that is not as it was written; None where all are."""
    if (checkpoint / "hookflat.pt").exists():
        return "an earlier hookflat wrote it, which this one does not read (finish the run with that one)"
    try:
        lines = (checkpoint / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        wrong = next((name for name in FILES if _digest(checkpoint / name) != sums.get(name)), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror}"
    return f"the checksum of {wrong} is not the one in {SUMS}" if wrong else None


def _seal(folder: Path) -> None:
    """Write the checksums, once everything that they are of is on the disk."""
    for name in FILES:
        synced(folder / name)
    (folder / SUMS).write_text("".join(f"{_digest(folder / name)}  {name}\n" for name in FILES), encoding="utf-8")
    synced(folder / SUMS)
    synced(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
