"""What there is to see of a run's or a study's folder, as facts for a page; nothing is written into it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hookflat.errors import UserError
from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.loading import load_recipe
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import Quantity, is_error_of, quantity
from hookflat.records.results import Results
from hookflat.studies.execution import times_of
from hookflat.studies.study import Entry, read_plan

T = TypeVar("T")
Facts = dict[str, Any]


@dataclass
class Watched:
    """A folder that is looked at again and again; files that did not change are read once."""

    folder: Path
    _read: dict[tuple[str, Path], tuple[tuple[int, int], Any]] = field(default_factory=dict, repr=False)
    _seen: dict[str, tuple[float, int]] = field(default_factory=dict, repr=False)
    """Of a run at work: when it was first seen, and the epochs that were done."""

    def __post_init__(self) -> None:
        if not self.runs():
            raise UserError(f"{self.folder}: neither a run's nor a study's folder, or nothing has begun in it")

    @property
    def is_study(self) -> bool:
        """Whether it is the folder of many runs."""
        return not RunFolder(self.folder).is_run

    def runs(self) -> dict[str, Entry]:
        """Every run by name: the plan's, in its order, or what is there."""
        if not self.is_study:
            return {self.folder.resolve().name: Entry(self.folder, RunFolder(self.folder).results)}
        if planned := read_plan(self.folder):
            return planned
        there = [RunFolder(path) for path in sorted(self.folder.glob("*/")) if RunFolder(path).is_run]
        return {run.path.name: Entry(run.path, run.results) for run in there}

    def facts(self) -> Facts:
        """The whole folder: every run with its state, how many are in which, failures, and the time left."""
        times = times_of(self.folder)
        runs = [self._run(name, entry, times) for name, entry in self.runs().items()]
        facts = {"name": self.folder.resolve().name, "study": self.is_study, "runs": runs}
        facts["states"] = Counter(run["state"] for run in runs)
        facts["left"] = self._left(runs, times) if self.is_study else runs[0]["left"]
        return facts

    def curves(self, name: str) -> Facts | None:
        """The charts of a run, each a title and lines of (epoch, value) by split; None for a name that is no run's."""
        entry = self.runs().get(name)
        if entry is None:
            return None
        run = RunFolder(entry.folder)
        declared, lines = self._declared(run), self._records(run)
        series: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
        for line in lines:
            for key, value in line.items():
                if isinstance(value, float) and not is_error_of(key):
                    splits = series.setdefault((str(line.get("stage")), key), {})
                    splits.setdefault(str(line.get("split")), []).append([line["epoch"], value])
        twice = Counter(key for _, key in series)
        charts = []
        for (stage, key), splits in series.items():
            what = quantity(key, declared)
            title = what.label + (f" ({stage.replace('_', ' ')})" if twice[key] > 1 else "")
            charts.append({"title": title, "share": what.unit == "share", "lines": splits})
        charts.sort(key=lambda chart: chart["title"] in ("loss", "lr"))
        return {"name": name, "charts": charts, "recipe": self._text(run.recipe), "log": self._log(run)}

    # --- one run ------------------------------------------------------------------------------------------------------

    def _run(self, name: str, entry: Entry, times: list[Facts]) -> Facts:
        run, measures = RunFolder(entry.folder), RunFolder(entry.results.parent)
        lines, epochs = self._records(run), self._epochs(run)
        epoch = max((line.get("epoch", 0) for line in lines), default=0)
        last = next((line for line in reversed(times) if line.get("run") == name), {})
        trained = run.results.exists() or bool(epochs and epoch >= epochs)
        if _in_use(run) or _in_use(measures):
            state = "measuring" if trained else "training"
        elif entry.results.exists():
            state = "done"
        elif last.get("was") == "failed":
            state = "failed"
        else:
            state = "stopped" if epoch or run.last_checkpoint() else "to do"
        facts = {
            "name": name,
            "state": state,
            "epoch": epoch,
            "epochs": epochs,
            "numbers": self._headlines(run, lines, entry),
        }
        facts["left"] = self._time_left(run, name, epoch, epochs) if state == "training" else None
        return facts | {"why": last.get("why", "") if state == "failed" else "", "log": str(run.log)}

    def _headlines(self, run: RunFolder, lines: list[Facts], entry: Entry) -> dict[str, str]:
        """The numbers that stand in the line of an epoch, the last ones, on test where there is one; at its end those
        that it was measured for."""
        results, shown = self._once("results", entry.results, lambda: Results.read(entry.results), None), {}
        if results and results.models:
            [network, *_] = results.models.values()
            for key, what in results.numbers.items():
                of_split = [(split, v[key]) for split in ("test", "train") if key in (v := getattr(network, split))]
                if what.headline and of_split:
                    shown[f"{what.label}, {of_split[0][0]}"] = what.text(of_split[0][1])
            return shown
        for key, what in self._declared(run).items():
            for split in ("test", "train") if what.headline else ():
                of_split = (line[key] for line in reversed(lines) if line.get("split") == split and key in line)
                if (value := next(of_split, None)) is not None:
                    shown[f"{what.label}, {split}"] = what.text(value)
                    break
        return shown

    def _time_left(self, run: RunFolder, name: str, epoch: int, epochs: int | None) -> float | None:
        """Seconds of training, by the epochs since it began, or for a resumed run since it was first seen here."""
        now = time.time()
        first, done = self._seen.setdefault(name, (now, epoch))
        with suppress(OSError):
            began = run.environment.stat().st_mtime
            if abs(began - run.recipe.stat().st_mtime) < 10:  # both are written together where nothing is resumed
                first, done = began, 0
            now = run.metrics.stat().st_mtime
        if not epochs or epoch <= done or now <= first:
            return None
        return max(0.0, (epochs - epoch) * (now - first) / (epoch - done) - (time.time() - now))

    def _epochs(self, run: RunFolder) -> int | None:
        options = self._tables(run).get("run", {})
        epochs, factor = options.get("epochs"), options.get("epochs_factor", 1.0)
        known = isinstance(epochs, int) and isinstance(factor, int | float) and math.isfinite(factor)
        return max(1, round(epochs * factor)) if known else None

    # --- a study ------------------------------------------------------------------------------------------------------

    def _left(self, runs: list[Facts], times: list[Facts]) -> float | None:
        """Seconds until all is done, by the runs that were made whole, with as many at once as are at work now."""
        whole = [line["seconds"] for line in times if line.get("was") == "todo"]
        if not whole:
            return None
        mean, at_work = sum(whole) / len(whole), [run for run in runs if run["state"] in ("training", "measuring")]
        waiting = sum(run["state"] in ("to do", "stopped") for run in runs)
        begun = sum(1 - run["epoch"] / run["epochs"] for run in at_work if run["epochs"])
        if not waiting and not at_work:
            return None
        return mean * (waiting + begun) / max(1, len(at_work))

    # --- files --------------------------------------------------------------------------------------------------------

    def _once(self, what: str, file: Path, read: Callable[[], T], empty: T) -> T:
        """What `read` gives, asked again when the file has changed; what was there before where that cannot be read."""
        try:
            stat = file.stat()
        except OSError:
            return empty
        state, known = (stat.st_mtime_ns, stat.st_size), self._read.get((what, file))
        if known is None or known[0] != state:
            value = known[1] if known else empty
            with suppress(OSError, ValueError, UserError):  # half a line that is being written, plugins not installed
                value = read()
            self._read[what, file] = known = (state, value)
        return known[1]

    def _records(self, run: RunFolder) -> list[Facts]:
        return self._once("records", run.metrics, run.records, [])

    def _tables(self, run: RunFolder) -> Facts:
        tables = self._once("tables", run.recipe, run.read_recipe, {})
        return {name: table for name, table in tables.items() if isinstance(table, dict)}

    def _text(self, file: Path) -> str:
        return self._once("text", file, lambda: file.read_text(encoding="utf-8"), "")

    def _log(self, run: RunFolder) -> str:
        """The end of what it said."""
        return "\n".join(self._text(run.log).splitlines()[-12:])

    def _declared(self, run: RunFolder) -> Mapping[str, Quantity]:
        """What its numbers are; nothing where its plugins are not installed here."""
        from hookflat.training.measuring import quantities  # loads torch, which a folder that is none does not need

        return self._once(
            "declared", run.recipe, lambda: quantities(load_recipe(self._tables(run), catalogue=catalogue_of())), {}
        )


def _in_use(run: RunFolder) -> bool:
    """Whether a process works in it; where nobody may ask (a folder of somebody else's), no."""
    with suppress(OSError):
        return run.in_use()
    return False
