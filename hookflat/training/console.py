"""What a run says while it works: a live bar with ETA on a terminal, plain lines elsewhere, nothing on other ranks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
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

from hookflat.recipe.options import as_table

if TYPE_CHECKING:
    from hookflat.functional.work import Tally
    from hookflat.training.measuring import Planned
    from hookflat.training.run import Run

_NAMES = {
    "clean_error": ("clean error", "percent"),
    "rerr_pgd": ("RErr (PGD)", "percent"),
    "rerr_autoattack": ("RErr (AutoAttack)", "percent"),
    "rloss": ("RLoss", "number"),
    "rloss_correct": ("RLoss, correct examples", "number"),
    "rloss_incorrect": ("RLoss, incorrect examples", "number"),
    "average_flatness": ("average-case flatness", "number"),
    "worst_flatness": ("worst-case flatness", "number"),
}
_CHECK_EVERY = 25


class Console:
    """The terminal of the main process."""

    def __init__(self, *, main: bool = True, quiet: bool = False) -> None:
        self.silent = quiet or not main
        self.rich = RichConsole(quiet=self.silent, highlight=False, soft_wrap=True)
        self._bar = self._new_bar(MofNCompleteColumn())
        self._live = self.rich.is_terminal and not self.silent
        self._task: Any = None
        self._began = time.perf_counter()

    def _new_bar(self, *more: ProgressColumn) -> Progress:
        columns = [TextColumn("{task.description}"), BarColumn(), *more, TimeElapsedColumn(), TextColumn("ETA")]
        return Progress(*columns, TimeRemainingColumn(), console=self.rich, transient=True)

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text, markup=False)

    def starting(self, run: Run, resumed: bool) -> None:
        """What will happen: the recipe in a few lines, device, processes, parameters."""
        recipe, data = run.recipe, run.data
        parameters = sum(p.numel() for p in run.network.parameters())
        x = data.train.x.shape
        options = recipe.run
        held = f", {len(data.holdout)} held out" if data.holdout else ""
        attack = recipe.slots["attack"]
        chosen = _chosen(attack)
        say = self.say
        say(f"{recipe.name}: {_listed(recipe)}")
        say(f"  data     {len(data.train)} training, {len(data.test)} test images{held}, {'x'.join(map(str, x[1:]))}, "
            f"{data.num_classes} classes")  # fmt: skip
        say(f"  model    {recipe.slot_names['model']}, {parameters:,} parameters")
        say(f"  attack   {', '.join([recipe.slot_names['attack'], *(f'{k} {_short(v)}' for k, v in chosen.items())])}")
        say(f"  measures eps {_short(recipe.eval.eps)}, step_size {_short(recipe.eval.step_size)}")
        say(f"  training {run.epochs} epochs of {run.steps_per_epoch} steps, batch {options.batch_size}, "
            f"{options.precision}, seed {options.seed}")  # fmt: skip
        threads = "" if run.device.type != "cpu" else f", {_threads()} thread(s) each"
        say(f"  device   {run.device}, {run.processes} process(es){threads}")
        say(f"  folder   {run.folder.path}" + (f", resumed after step {run.step}" if resumed else ""))
        if self._live:
            self._bar.start()
            self._task = self._bar.add_task("training", total=run.total_steps, completed=run.step)

    def evaluating(self, run: Run, model: str) -> None:
        """What will be measured, on what."""
        recipe, data, say = run.recipe, run.data, self.say
        x = data.test.x.shape
        say(f"{model}" + (f": {recipe.slot_names['model']}" if "model" in recipe.slot_names else ""))
        say(f"  data     {recipe.slot_names['data']}: {len(data.train)} training, {len(data.test)} test images, "
            f"{'x'.join(map(str, x[1:]))}, {data.num_classes} classes")  # fmt: skip
        say(f"  measures eps {_short(recipe.eval.eps)}, step_size {_short(recipe.eval.step_size)}, "
            f"seed {recipe.run.seed}")  # fmt: skip
        say(f"  device   {run.device}, {run.processes} process(es)")
        say(f"  folder   {run.folder.path}")

    def stepped(self, run: Run) -> None:
        """A step is done; now and then, look whether its values were finite."""
        if run.step % _CHECK_EVERY == 0:
            run.check()
        if self._live:
            self._bar.update(self._task, completed=run.step)

    def epoch(self, run: Run, line: dict[str, Any]) -> None:
        """One line for an epoch."""
        train, test = line.get("train", {}), line.get("test", {})
        parts = [f"epoch {run.epoch:>{len(str(run.epochs))}}/{run.epochs}", f"lr {line['lr']:.4g}"]
        parts.append(f"loss {line['loss']:.3f}")
        for key in [k for k in _NAMES if (k in test or k in train) and not k.startswith("rloss_")]:
            name, kind = _NAMES[key]
            values = [f"{_shown(s[key], kind)} {n}" for n, s in (("train", train), ("test", test)) if key in s]
            parts.append(f"{name} {', '.join(values)}")
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

    def results(self, results: dict[str, Any]) -> None:
        """The final table."""
        models = results["models"]
        title = f"{results['recipe']}, after {results['epochs']} epochs" if "epochs" in results else results["model"]
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name, entry in models.items():
            at = f" (epoch {entry['epoch']})" if "epoch" in entry else ""
            table.add_column({"last": "last", "best": "early stopped"}.get(name, name) + at, justify="right")
        for label, key, split, kind in _rows(models):
            cells = [_cell(entry.get(split, {}), key, kind) for entry in models.values()]
            table.add_row(label, *cells)
        protocol = results["protocol"]
        measures = {m: (s["examples"], o) for s in protocol["stages"].values() for m, o in s["measures"].items()}
        for name, (examples, options) in measures.items():
            shown = [f"{k} {_short(v)}" for k, v in options.items()]
            sizes = [f"{n} {split}" for split, n in examples.items()]
            table.caption = f"{table.caption or ''}{name}: {', '.join([*shown, *sizes])} examples\n"
        table.caption = f"{table.caption or ''}eps {_short(protocol['eps'])}, step_size {_short(protocol['step_size'])}"
        table.caption_justify = "left"
        self.rich.print(table)

    def took(self) -> str:
        """The time since the start."""
        seconds = time.perf_counter() - self._began
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _rows(models: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(label, key, split, kind) of the final table: known measures first, then every other number."""
    keys = {key for entry in models.values() for split in ("train", "test") for key in entry.get(split, {})}
    ordered = [k for k in _NAMES if k in keys] + sorted(k for k in keys - _NAMES.keys() if not k.endswith("_stderr"))
    rows = []
    for key in ordered:
        share = key.startswith("broken_by_")
        name, kind = _NAMES.get(key, (key.replace("_", " "), "percent" if share else "number"))
        for split in ("test", "train", *(["gap"] if key in _NAMES else [])):
            if any(key in entry.get(split, {}) for entry in models.values()):
                rows.append((f"{name}, {split}", key, split, kind))
    return rows


def _cell(values: dict[str, float], key: str, kind: str) -> str:
    """A number, with its standard error where there is one."""
    if key not in values:
        return "-"
    error = values.get(f"{key}_stderr")
    return _shown(values[key], kind) + (f" ± {_shown(error, kind)}" if error is not None else "")


def _chosen(plugin: Any) -> dict[str, Any]:
    """The options of a plugin that are not its defaults."""
    defaults = as_table(type(plugin)())
    return {k: v for k, v in as_table(plugin).items() if v != defaults.get(k)}


def _listed(recipe: Any) -> str:
    slots = [f"{slot} {recipe.slot_names[slot]}" for slot in ("loss", "optimizer", "schedule")]
    return ", ".join([*slots, *recipe.plugins])


def _shown(value: float, kind: str) -> str:
    return f"{100 * value:.1f} %" if kind == "percent" else f"{value:.3f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
