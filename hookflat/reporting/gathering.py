"""What there is in folders of runs: networks measured alike, and what was left out, with the reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hookflat.errors import UserError
from hookflat.recipe import flat
from hookflat.reporting.runs import Evaluation, Network, Run, Setting, UnusableError, is_run, last_line, read_run

_BOOKKEEPING = ("run.seed", "run.threads", "run.folder", "run.checkpoint_steps", "eval.", "track.", "plugins.figures")
"""What does not make a run another configuration."""


class LeftOut(NamedTuple):
    """Something in the folders that the report does not use."""

    name: str
    why: str


@dataclass(eq=False)
class Configuration:
    """Runs that differ in nothing but the seed: a row of the table."""

    method: str
    rescaled: float | None
    setting: Setting
    runs: list[Run]

    @property
    def key(self) -> str:
        """Its name: the recipe's, and what makes it another than its other configurations."""
        scale = [f"x{self.rescaled:g}"] if self.rescaled else []
        return " ".join([self.method, *scale, *(f"{k.split('.')[-1]}={plain(v)}" for k, v in self.setting)])

    @property
    def anchor(self) -> str:
        """Of the configuration on the page."""
        return "c-" + re.sub(r"[^\w.=-]", "_", self.key)


@dataclass(eq=False)
class Gathered:
    """Runs measured by one protocol on one data set; `landscapes`: all runs that have some.

    `protocol`: of the first run's numbers; `evaluation`: its name, "" for the recipes' own.
    """

    configurations: list[Configuration]
    landscapes: list[Run]
    left_out: list[LeftOut]
    protocol: dict[str, Any]
    evaluation: str
    classes: int | None

    @property
    def runs(self) -> list[Run]:
        """All of them, by configuration."""
        return [run for configuration in self.configurations for run in configuration.runs]


def gather(folders: Sequence[Path], *, protocol: str = "", ignore: Path | None = None) -> Gathered:
    """Read every run in `folders` (run folders, or folders of them).

    `protocol`: take the numbers of this one of `hookflat eval`'s; otherwise those of the one that measured most runs.
    `ignore`: a folder that is no run, the report's own. Raises UserError where nothing is measured.
    """
    found: list[Run] = []
    left_out: list[LeftOut] = []
    for name, folder in _candidates(folders, ignore):
        try:
            found.append(read_run(name, folder))
        except UnusableError as why:
            left_out.append(LeftOut(name, str(why)))
    left_out += _only_logs(folders, {run.name for run in found} | {out.name for out in left_out})
    common = _common(found, protocol)
    runs = [run for run in found if common and _take(run, common, found)]
    left_out += [LeftOut(r.name, _difference(r, common) + _only_landscape(r)) for r in found if r not in runs]
    if common is None or not runs:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out[:8])
        raise UserError(f"{', '.join(map(str, folders))}: no run that is trained and measured{reasons}")
    left_out += [
        LeftOut(f"{r.name}, {d}", "not a finite number") for r in runs for e in r.evaluations for d in e.dropped
    ]
    classes = {e.classes for run in runs for e in run.evaluations if e.classes}
    landscapes = [run for run in found if run.landscape]
    shared = classes.pop() if len(classes) == 1 else None
    return Gathered(_configurations(runs), landscapes, left_out, common.protocol, common.name, shared)


def plain(value: Any) -> str:
    """A value of an option, as a name shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _candidates(folders: Sequence[Path], ignore: Path | None) -> Iterator[tuple[str, Path]]:
    """(name, folder) of everything that may be a run; names are unique."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give run folders, or folders of runs")
        inner = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
        for f in [folder] if is_run(folder) else inner:
            if f != ignore and not (f / "report.html").exists():
                found[f.resolve()] = f
    names = Counter(whole.name for whole in found)
    for whole, f in found.items():
        yield (whole.name if names[whole.name] == 1 else f"{whole.parent.name}/{whole.name}"), f


def _only_logs(folders: Iterable[Path], known: set[str]) -> Iterator[LeftOut]:
    """Runs of a study that failed before they had a folder."""
    for folder in folders:
        for log in sorted(folder.glob("*.log")) if not is_run(folder) else ():
            if log.stem not in known:
                yield LeftOut(log.stem, f"never begun; its log ends: {last_line(log)}")


def _common(runs: Sequence[Run], protocol: str) -> Evaluation | None:
    """The first of the evaluations that most runs share, of those that measured RLoss where any did."""
    alike: dict[str, list[Evaluation]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.measured and evaluation.name.startswith(protocol):
                alike[evaluation.key].append(evaluation)
    if protocol and runs and not alike:
        names = sorted({e.name for run in runs for e in run.evaluations if e.name})
        raise UserError(f"--protocol {protocol}: no run was measured by it, only by {', '.join(names) or 'its recipe'}")

    def worth(same: list[Evaluation]) -> tuple[bool, int, int]:
        networks = same[0].networks.values()
        return any("rloss" in n.test for n in networks), len(same), sum(len(n.test) for n in networks)

    return max(alike.values(), key=worth)[0] if alike else None


def _take(run: Run, common: Evaluation, runs: Sequence[Run]) -> bool:
    """Give a run its numbers: those of the common evaluation, and of others for what that did not measure.

    Others are used in the order of how many runs have them. False for a run without the common one.
    """
    mine = {evaluation.key: evaluation.networks for evaluation in run.evaluations if evaluation.measured}
    if common.key not in mine:
        return False
    shared = Counter(e.key for r in runs for e in r.evaluations)
    run.networks = {label: network for label, network in mine.pop(common.key).items() if network.test}
    for key in sorted(mine, key=lambda k: -shared[k]):
        for label, other in mine[key].items():
            if label in run.networks:
                here = run.networks[label]
                merged = [more | less for less, more in zip(here[2:], other[2:], strict=True)]
                run.networks[label] = Network(label, here.epoch, *merged)
    return True


def _difference(run: Run, common: Evaluation | None) -> str:
    """Why a run's numbers do not go with the others'."""
    mine = [e for e in run.evaluations if e.measured]
    if not mine or common is None:
        return "trained, but not measured" if run.records else "not measured"
    there = dict(flat(common.setup))
    here = min((dict(flat(e.setup)) for e in mine), key=lambda h: sum(h.get(k) != there.get(k) for k in {*h, *there}))
    named = f"hookflat eval's {common.name}" if common.name else "the recipe's own measures"
    if not here.keys() & {path for path in there if len(path) == 2 and path[1] == "examples"}:
        return f"not measured by the protocol of the others ({named})"
    path = next(path for path in (*there, *here) if here.get(path) != there.get(path))
    return f"measured otherwise: {'.'.join(path)} is {here.get(path)}, {there.get(path)} for the others"


def _only_landscape(run: Run) -> str:
    return " (only its landscape is used)" if run.landscape else ""


def _configurations(runs: list[Run]) -> list[Configuration]:
    """Runs by method and by the options in which the runs of a method differ."""
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_method[run.method].append(run)
    found: dict[tuple[str, float | None, Setting], list[Run]] = defaultdict(list)
    for method, same in by_method.items():
        tables = [{".".join(path): _hashable(value) for path, value in flat(run.recipe)} for run in same]
        names = [n for n in dict.fromkeys(n for t in tables for n in t) if not n.startswith(_BOOKKEEPING)]
        differing = [name for name in names if len({table.get(name) for table in tables}) > 1]
        for run, table in zip(same, tables, strict=True):
            run.setting = tuple((name, table.get(name)) for name in differing)
            found[method, run.rescaled, run.setting].append(run)
    return [Configuration(*key, same) for key, same in found.items()]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else str(value) if isinstance(value, dict) else value
