"""What a run says while it works: a live bar with ETA on a terminal, plain lines elsewhere, nothing on other ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hookflat.functional.work import Tally
from hookflat.records.quantities import Quantity, is_error_of, quantity
from hookflat.records.results import NetworkResults, Results
from hookflat.terminal import Terminal
from hookflat.training.measuring import Planned


class Console:
    """The terminal of the main process."""

    def __init__(self, *, main: bool = True, quiet: bool = False) -> None:
        self.silent = quiet or not main
        self.rich = Terminal(quiet=self.silent, soft_wrap=True)
        self._bar = self._new_bar(MofNCompleteColumn())
        self._live = self.rich.is_terminal and not self.silent
        self._task: Any = None
        self._began = time.perf_counter()
        self.quantities: Mapping[str, Quantity] = {}

    def _new_bar(self, *more: ProgressColumn) -> Progress:
        columns = [TextColumn("{task.description}"), BarColumn(), *more, TimeElapsedColumn(), TextColumn("ETA")]
        return Progress(*columns, TimeRemainingColumn(), console=self.rich, transient=True)

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text)

    def training(self, total: int, done: int) -> None:
        """The training begins, `done` of `total` steps are made already."""
        if self._live:
            self._bar.start()
            self._task = self._bar.add_task("training", total=total, completed=done)

    def stepped(self, step: int) -> None:
        """So many steps are done."""
        if self._live:
            self._bar.update(self._task, completed=step)

    def epoch(self, epoch: int, epochs: int, line: dict[str, Any]) -> None:
        """One line for an epoch: learning rate, loss, and the headlines among its numbers by split."""
        train, test = line.get("train", {}), line.get("test", {})
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}", f"lr {line['lr']:.4g}"]
        parts.append(f"loss {line['loss']:.3f}")
        for key, found in self.quantities.items():
            if found.headline and (key in train or key in test):
                shown = [f"{found.text(s[key])} {n}" for n, s in (("train", train), ("test", test)) if key in s]
                parts.append(f"{found.label} {', '.join(shown)}")
        if line.get("cancelled_steps"):
            parts.append(f"{line['cancelled_steps']} step(s) cancelled, loss scale now {line['loss_scale']:g}")
        self.say("  ".join(parts))

    def measuring(self, plan: dict[str, list[Planned]], tally: Tally, *, lines: bool = False) -> None:
        """The measures of the `plan` (by network) begin; `lines`: say when each is done."""
        self.close()
        self._plan = [(label, *entry) for label, entries in plan.items() for entry in entries]
        self._lines, self._done, self._at = lines, 0, 0
        if not self._live:
            if not lines:
                self.say("measuring the final network ...")
            return
        self._bar = self._new_bar()
        self._task = self._bar.add_task("measuring", total=sum(passes for *_, passes in self._plan))
        self._bar.start()
        self._began_at = tally.passes

        def changed(tally: Tally) -> None:
            within = min(tally.passes - self._began_at, self._plan[self._at][-1] if self._at < len(self._plan) else 0)
            self._bar.update(self._task, completed=self._done + within)

        tally.changed = changed

    def measured(self, tally: Tally, seconds: float) -> None:
        """The next measure of the plan is done."""
        label, _, split, measure, passes = self._plan[self._at]
        self._at, self._done, self._began_at = self._at + 1, self._done + passes, tally.passes
        if self._live:
            self._bar.update(self._task, completed=self._done, description=f"measuring {label}")
        if self._lines:
            self.say(f"  {self._at}/{len(self._plan)} {label} {split} {measure}: {seconds:.1f} s")

    def close(self) -> None:
        """End the live display."""
        if self._live:
            self._bar.stop()

    def results(self, results: Results) -> None:
        """The final table."""
        title = results.model or f"{results.recipe}, after {results.epochs} epochs"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name, numbers in results.models.items():
            at = f" (epoch {numbers.epoch})" if numbers.epoch is not None else ""
            table.add_column({"last": "last", "best": "early stopped"}.get(name, name) + at, justify="right")
        for label, cells in result_rows(results):
            table.add_row(label, *cells)
        protocol, lines = results.protocol, []
        measures = {m: (s.examples, o) for s in protocol.stages.values() for m, o in s.measures.items()}
        for name, (examples, options) in measures.items():
            shown = [f"{k} {short(v)}" for k, v in options.items() if v not in ("", None)]
            sizes = [f"{n} {split}" for split, n in examples.items()]
            lines.append(f"{name}: {', '.join([*shown, *sizes])} examples")
        table.caption = "\n".join([*lines, f"{protocol.threat}, step_size {short(protocol.step_size)}"])
        table.caption_justify = "left"
        self.rich.print(table)
        for name, numbers in results.models.items():
            for line in trusted(numbers, results.numbers):
                self.say(f"{name}, {line}")

    def took(self) -> str:
        """The time since the start."""
        seconds = time.perf_counter() - self._began
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def trusted(numbers: NetworkResults, declared: Mapping[str, Quantity]) -> list[str]:
    """For each split on which flags were looked at: those that were raised, in words, or that none was."""
    lines = []
    for split, values in (("test", numbers.test), ("train", numbers.train)):
        flags = {found.label: values[key] for key, found in declared.items() if found.unit == "flag" and key in values}
        raised = [label for label, value in flags.items() if value]
        if raised:
            lines.append(f"{split}: RErr may be too low: {'; '.join(raised)}")
        elif flags:
            lines.append(f"{split}: no sign that RErr is too low ({len(flags)} were looked for)")
    return lines


def result_rows(results: Results) -> list[tuple[str, list[str]]]:
    """(label, a cell for each network) of the final table: declared numbers in their order, then every other."""
    models = results.models.values()
    there = {key for m in models for key in (*m.test, *m.train) if not is_error_of(key)}
    rows = []
    for key in [*(k for k in results.numbers if k in there), *sorted(there - results.numbers.keys())]:
        found = quantity(key, results.numbers)
        for split in ("test", "train", *(["gap"] if found.headline else [])):
            values = [getattr(m, split) for m in models]
            if any(key in v for v in values):
                rows.append((f"{found.label}, {split}", [_cell(v, key, found) for v in values]))
    return rows


def _cell(values: dict[str, float], key: str, found: Quantity) -> str:
    """A number, with its standard error where there is one."""
    if key not in values:
        return "-"
    error = values.get(f"{key}_stderr")
    return found.text(values[key]) + (f" ± {found.text(error)}" if error is not None else "")


def short(value: Any) -> str:
    """A value of an option in a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
