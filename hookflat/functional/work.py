"""Long measurements in parts: what an interrupted one had finished is not done again, and a bar can follow it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hookflat.functional.seeds import fingerprint, named

if TYPE_CHECKING:
    from hookflat.functional.examples import Set

Values = dict[str, Tensor]


@dataclass
class Tally:
    """Passes over examples so far, and the seconds that parts found on disk had taken."""

    passes: int = 0
    seconds_before: float = 0.0
    changed: Callable[[Tally], None] = lambda tally: None


@dataclass
class Work:
    """The parts of one measurement of one network on one set of examples.

    `folder`: where finished parts are kept, this process's own; None: nowhere. Whoever makes a `Work` sees to it that
    another network, other examples or other options get another folder.
    """

    folder: Path | None = None
    tally: Tally = field(default_factory=Tally)

    def part(self, name: str) -> Work:
        """The same work, its parts under a name of their own."""
        return Work(self.folder / name if self.folder else None, self.tally)

    def once(self, name: str, compute: Callable[[], Values], together: Set | None = None) -> Values:
        """What `compute` returns, or returned before an interruption: tensors by name, on the CPU.

        Where `compute` needs the other processes (`together`), all of them must have it, or all compute it again.
        """
        file = self.folder / f"{name}.safetensors" if self.folder else None
        kept = _kept(file) if file is not None and file.exists() else None
        known = kept is not None
        if together is not None and together.processes > 1:
            known = bool(together.sum(torch.tensor(float(known))) == together.processes)
        if known and kept is not None:
            values, passes, seconds = kept
            self.tally.seconds_before += seconds
            self.passed(passes)
            return values
        passes, began = self.tally.passes, time.perf_counter()
        values = {key: value.detach().cpu().contiguous().clone() for key, value in compute().items()}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            seconds = time.perf_counter() - began
            about = {"passes": self.tally.passes - passes, "seconds": seconds, "checksum": fingerprint(*named(values))}
            beside = file.with_suffix(".writing")
            beside.write_bytes(save(values, metadata={"hookflat": json.dumps(about)}))
            beside.replace(file)
        return values

    def passed(self, passes: int) -> None:
        """So many examples went forward and back through the network."""
        self.tally.passes += passes
        self.tally.changed(self.tally)


def _kept(file: Path) -> tuple[Values, int, float] | None:
    """What a part was, its passes and seconds; None where it is damaged and has to be computed again."""
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["hookflat"])
            values = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if about["checksum"] != fingerprint(*named(values)):
            return None
        return values, int(about["passes"]), float(about["seconds"])
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError):
        return None
