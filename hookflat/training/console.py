"""What a run says while it works: a live bar with ETA on a terminal, plain lines elsewhere, nothing on other ranks.

Where there is no bar, a log is never silent for long: after `SILENCE` seconds a line says how far the work is.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hookflat.functional.work import Tally
from hookflat.records.quantities import Quantity, is_error_of, quantity
from hookflat.records.results import NetworkResults, Results
from hookflat.terminal import duration
from hookflat.training.measuring import Planned

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

SILENCE = 30.0
"""Seconds without a line after which one says how far the work is."""


class Console:
    """The terminal of the main process."""

    def __init__(self, *, main: bool = True, quiet: bool = False) -> None:
        from rich.progress import MofNCompleteColumn  # rich here and below: looking at recipes does without

        from hookflat.display import Terminal

        self.silent = quiet or not main
        self.rich = Terminal(quiet=self.silent, soft_wrap=True)
        self._bar = self._new_bar(MofNCompleteColumn())
        self._live = self.rich.is_terminal and not self.silent
        self._task: Any = None
        self._began = self._said = time.perf_counter()
        self._stage = Progressing("", "", 0)
        self.quantities: Mapping[str, Quantity] = {}

    def _new_bar(self, *more: ProgressColumn) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), *more, TimeElapsedColumn(), TextColumn("ETA")]
        return Progress(*columns, TimeRemainingColumn(), console=self.rich, transient=True)

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text)
        self._said = time.perf_counter()

    def training(self, total: int, done: int, tally: Tally) -> None:
        """The training begins, `done` of `total` steps are made already; what it measures on its way moves `tally`."""
        self._stage, self._done = Progressing("training", "steps", total, done), done
        tally.changed = lambda tally: self._moved(self._done)
        if self._live:
            self._bar.start()
            self._task = self._bar.add_task("training", total=total, completed=done)

    def stepped(self, step: int) -> None:
        """So many steps are done."""
        self._done = step
        self._moved(step)

    def counting(self, name: str, unit: str, total: int) -> Callable[[int], None]:
        """For work before the training: call it with how much is done, and a line says so after each long silence."""
        stage = Progressing(name, unit, total)

        def done(count: int) -> None:
            if time.perf_counter() - self._said >= SILENCE:
                self.say(f"  {stage.at(count)}")

        return done

    def _moved(self, done: int) -> None:
        """So much of the stage is done: the bar moves, or a line says so when none was said for long."""
        if self._live:
            self._bar.update(self._task, completed=done, description=self._stage.name)
        elif not self.silent and time.perf_counter() - self._said >= SILENCE:
            self.say(f"  {self._stage.at(done)}")

    def epoch(self, epoch: int, epochs: int, line: dict[str, Any]) -> None:
        """One line for an epoch: learning rate, loss, and the headlines among its numbers by split; wrapped where it is
        wider than the terminal. In a file it stays one, to be looked for."""
        train, test = line.get("train", {}), line.get("test", {})
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}", f"lr {line['lr']:.4g}"]
        parts.append(f"loss {line['loss']:.3f}")
        for key, what in self.quantities.items():
            if what.headline and (key in train or key in test):
                shown = [f"{what.text(s[key])} {n}" for n, s in (("train", train), ("test", test)) if key in s]
                parts.append(f"{what.label} {', '.join(shown)}")
        if line.get("cancelled_steps"):
            parts.append(f"{line['cancelled_steps']} step(s) cancelled, loss scale now {line['loss_scale']:g}")
        self.say(_wrapped(parts, self.rich.width) if self.rich.is_terminal else "  ".join(parts))

    def measuring(self, plan: dict[str, list[Planned]], tally: Tally, *, lines: bool = False) -> None:
        """The measures of the `plan` (by network) begin; `lines`: say when each is done."""
        self.close()
        self._plan = [(label, *entry) for label, entries in plan.items() for entry in entries]
        self._lines, self._done, self._at = lines, 0, 0
        self._stage = Progressing("measuring", "passes", sum(passes for *_, passes in self._plan))
        self._began_at = tally.passes
        if self._live:
            self._bar = self._new_bar()
            self._task = self._bar.add_task("measuring", total=self._stage.total)
            self._bar.start()
        elif not lines and self._plan:
            self.say("measuring the final network ...")

        def changed(tally: Tally) -> None:
            label, _, split, measure, passes = (
                self._plan[self._at] if self._at < len(self._plan) else ("", "", "", "", 0)
            )
            self._stage.name = f"measuring {label} {split} {measure}".rstrip()
            self._moved(self._done + min(tally.passes - self._began_at, passes))

        tally.changed = changed

    def measured(self, tally: Tally, seconds: float) -> None:
        """The next measure of the plan is done."""
        label, _, split, measure, passes = self._plan[self._at]
        self._at, self._done, self._began_at = self._at + 1, self._done + passes, tally.passes
        if self._live:
            self._moved(self._done)
        if self._lines:
            self.say(f"  {self._at}/{len(self._plan)} {label} {split} {measure}: {seconds:.1f} s")

    def close(self) -> None:
        """End the live display."""
        if self._live:
            self._bar.stop()

    def results(self, results: Results) -> None:
        """The final table; a line where nothing was measured at the end."""
        rows = result_rows(results)
        if not any(network.test or network.train for network in results.models.values()):
            self.say("nothing is measured at the end: the recipe has no stage without `every` that is on")
            return
        from rich.table import Table

        title = results.model or f"{results.recipe}, after {results.epochs} epochs"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name, numbers in results.models.items():
            at = f" (epoch {numbers.epoch})" if numbers.epoch is not None else ""
            table.add_column({"last": "last", "best": "early stopped"}.get(name, name) + at, justify="right")
        for label, cells in rows:
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
        minutes, seconds = divmod(round(time.perf_counter() - self._began), 60)
        return f"{minutes} min {seconds} s" if minutes > 1 else f"{60 * minutes + seconds} s"


class Progressing:
    """A stage of the work: its name, what it is counted in, how much there is, and how much was done before."""

    def __init__(self, name: str, unit: str, total: int, before: int = 0) -> None:
        self.name, self.unit, self.total, self.before = name, unit, total, before
        self._began = time.perf_counter()

    def at(self, done: int) -> str:
        """How far it is, at what rate, and how long the rest takes at that."""
        text = f"{self.name}: {done:,} of {self.total:,} {self.unit} ({done / max(1, self.total):.0%})"
        rate = (done - self.before) / max(1e-9, time.perf_counter() - self._began)
        return text + (f", {rate:.3g} a second, {duration((self.total - done) / rate)} left" if rate > 0 else "")


def _wrapped(parts: list[str], width: int) -> str:
    """The parts of a line; where it is too wide, broken between them, the rest further in."""
    line = "  ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    lines = textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def trusted(numbers: NetworkResults, declared: Mapping[str, Quantity]) -> list[str]:
    """For each split on which flags were looked at: those that were raised, in words, or that none was."""
    lines = []
    for split, values in (("test", numbers.test), ("train", numbers.train)):
        flags = {what.label: values[key] for key, what in declared.items() if what.unit == "flag" and key in values}
        raised = [label for label, value in flags.items() if value]
        if raised:
            lines.append(f"{split}: RErr may be too low: {'; '.join(raised)}")
        elif flags:
            lines.append(f"{split}: no sign that RErr is too low ({len(flags)} were looked for)")
    return lines


def result_rows(results: Results) -> list[tuple[str, list[str]]]:
    """(label, a cell for each network) of the final table: declared numbers in their order, then every other.

    Without flags, which `trusted` tells.
    """
    models = results.models.values()
    there = {key for m in models for key in (*m.test, *m.train) if not is_error_of(key)}
    rows = []
    for key in [*(k for k in results.numbers if k in there), *sorted(there - results.numbers.keys())]:
        what = quantity(key, results.numbers)
        for split in () if what.unit == "flag" else ("test", "train", *(["gap"] if what.headline else [])):
            values = [getattr(m, split) for m in models]
            if any(key in v for v in values):
                rows.append((f"{what.label}, {split}", [_cell(v, key, what) for v in values]))
    return rows


def _cell(values: dict[str, float], key: str, what: Quantity) -> str:
    """A number, with its standard error where there is one."""
    if key not in values:
        return "-"
    return what.text(values[key], values.get(f"{key}_stderr"))


def short(value: Any) -> str:
    """A value of an option in a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
