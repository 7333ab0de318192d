"""What there is in folders of runs: networks measured alike, and what was left out, with the reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hookflat.errors import UserError
from hookflat.recipe.tables import as_key, flat
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import Quantity, Role, of_role, quantity
from hookflat.reporting.runs import (
    PARTS,
    THREAT,
    Evaluation,
    MeasuredRun,
    Network,
    UnusableError,
    as_id,
    last_line,
    read_run,
)
from hookflat.reporting.settings import Setting, options_of, settings, spelled
from hookflat.studies.jobs import CLUSTER


class LeftOut(NamedTuple):
    """Something in the folders that the report does not use."""

    name: str
    why: str


@dataclass(frozen=True, eq=False)
class Configuration:
    """Runs that differ in nothing but the seed: a row of the table.

    `setting`: the options in which it differs from other runs of its method.
    """

    method: str
    rescaled: float | None
    setting: Setting
    runs: list[MeasuredRun]

    @property
    def key(self) -> str:
        """Its name: the recipe's, and what makes it another than its other configurations."""
        scale = [f"x{self.rescaled:g}"] if self.rescaled else []
        return " ".join([self.method, *scale, *spelled(self.setting, "=")])

    @property
    def checkpoint(self) -> str:
        """The name of a study's checkpoint, which is a configuration of its own; "" for a recipe."""
        return next((run.label.name for run in self.runs if run.label), "")

    @property
    def anchor(self) -> str:
        """Of the configuration on the page."""
        return "c-" + as_id(self.key)


@dataclass(eq=False)
class Gathered:
    """Runs measured by one protocol on one data set.

    `main`: an evaluation by it. `others`: (evaluation, measures) that were taken from other protocols, for all runs
    that have them. `landscapes`: runs with landscapes measured alike, also of runs that are left out otherwise.
    """

    configurations: list[Configuration]
    landscapes: list[Configuration]
    left_out: list[LeftOut]
    main: Evaluation
    others: list[tuple[Evaluation, list[str]]]
    classes: int | None

    @property
    def norm(self) -> str:
        """Of the threat that all of its numbers are under."""
        return self.main.setup["norm"]

    @property
    def runs(self) -> list[MeasuredRun]:
        """All of them, by configuration."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @cached_property
    def quantities(self) -> dict[str, Quantity]:
        """What each number is, as the evaluations that gave it say."""
        merged: dict[str, Quantity] = {}
        for evaluation in [self.main, *(e for e, _ in self.others), *(e for r in self.runs for e in r.evaluations)]:
            merged = evaluation.quantities | merged
        return merged

    def playing(self, role: Role) -> str:
        """The number that plays a role: the one that most networks have, of the highest rank; "" where none has any."""
        networks = [n for run in self.runs for n in run.networks.values()]
        counts = {name: sum(name in n.test for n in networks) for name in of_role(role, self.quantities)}
        best = max(counts, key=lambda name: counts[name], default="")
        return best if counts.get(best) else ""

    def name(self, number: str) -> str:
        """A number in words."""
        return quantity(number, self.quantities).label


def gather(folders: Sequence[Path], *, protocol: str = "", ignore: Path | None = None) -> Gathered:
    """Read every run in `folders` (run folders, or folders of them).

    `protocol`: take the numbers of this one of `hookflat eval`'s; otherwise those of the one that measured most runs.
    `ignore`: a folder that is no run, the report's own. Raises UserError where nothing is measured.
    """
    candidates = _candidates(folders, ignore)
    measured: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    for name, folder in _named(candidates):
        try:
            measured.append(read_run(name, folder))
        except UnusableError as why:
            left_out.append(LeftOut(name, str(why)))
    left_out += _only_logs(folders, candidates)
    left_out += [LeftOut(f"{r.name}, {_lines(r.damaged)} of metrics.jsonl", "damaged") for r in measured if r.damaged]
    left_out += [
        LeftOut(f"{r.name}/eval/{a}", "older measures, moved aside by --redo") for r in measured for a in r.aside
    ]
    main = _main(measured, protocol)
    if main is not None:
        for evaluation in [e for run in measured for e in run.evaluations if e.covers(main)]:
            evaluation.setup = main.setup  # what it has besides is its own
    runs = [run for run in measured if main and any(e.key == main.key for e in run.evaluations)]
    left_out += [LeftOut(r.name, _difference(r, main) + _only_landscape(r)) for r in measured if r not in runs]
    if main is None or not runs:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out[:8])
        raise UserError(f"{', '.join(map(str, folders))}: no run that is trained and measured{reasons}")
    runs, twice = _once(runs)
    others = _take(runs, main)
    landscapes, unlike = _landscapes(measured, {out.name for out in twice}, main.setup["norm"])
    left_out += [*twice, *unlike, *_in_other_norms(runs, main.setup["norm"])]
    dropped = [(run, name) for run in runs for e in run.evaluations for name in e.dropped]
    left_out += [LeftOut(f"{run.name}, {name}", "not a finite number") for run, name in dropped]
    classes = {e.classes for run in runs for e in run.evaluations if e.classes}
    shared = classes.pop() if len(classes) == 1 else None
    return Gathered(configurations(runs), configurations(landscapes), left_out, main, others, shared)


def configurations(runs: Iterable[MeasuredRun]) -> list[Configuration]:
    """Runs by method and by the options in which the runs of a method differ."""
    by_method: dict[str, list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        by_method[run.method].append(run)
    grouped: dict[tuple[str, float | None, Setting], list[MeasuredRun]] = defaultdict(list)
    for method, every in by_method.items():
        same = [run for run in every if not run.label]
        for run in every:
            if run.label:
                grouped[method, run.rescaled, (("checkpoint", run.label.name),)].append(run)
        for run, setting in zip(same, settings([options_of(run.recipe) for run in same]), strict=True):
            grouped[method, run.rescaled, setting].append(run)
    return [Configuration(*key, same) for key, same in grouped.items()]


def evidence(configurations: Sequence[Configuration]) -> list[int]:
    """Of each configuration the number of what is independent evidence: itself, or of checkpoints the method."""
    names = [c.method if c.checkpoint else c.key for c in configurations]
    return [names.index(name) for name in names]


def evidence_in_words(configurations: Sequence[Configuration]) -> str:
    """What `evidence` counts."""
    kinds = {"methods" if c.checkpoint else "configurations" for c in configurations}
    return " and ".join(sorted(kinds))


def _candidates(folders: Sequence[Path], ignore: Path | None) -> dict[Path, Path]:
    """Every folder that may be a run, by its whole path."""
    candidates: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give run folders, or folders of runs")
        inner = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
        for f in [folder] if RunFolder(folder).is_run else inner:
            if f != ignore and f.name != CLUSTER and not (f / "report.html").exists():
                candidates[f.resolve()] = f
    return candidates


def _named(candidates: dict[Path, Path]) -> Iterator[tuple[str, Path]]:
    """(name, folder): the folder's own name, with as many above it as make it the only one."""
    for whole, folder in candidates.items():
        depth = 1
        while sum(other.parts[-depth:] == whole.parts[-depth:] for other in candidates) > 1:
            depth += 1
        yield "/".join(whole.parts[-depth:]), folder


def _only_logs(folders: Iterable[Path], candidates: dict[Path, Path]) -> Iterator[LeftOut]:
    """Runs of a study that failed before they had a folder."""
    for folder in folders:
        for log in sorted(folder.glob("*.log")) if not RunFolder(folder).is_run else ():
            if log.resolve().with_suffix("") not in candidates:
                yield LeftOut(log.stem, f"never begun; its log ends: {last_line(log)}")


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    return f"{len(numbers)} lines, {numbers[0]} the first,"


def _main(runs: Sequence[MeasuredRun], protocol: str) -> Evaluation | None:
    """The first of the evaluations that most runs share, of those that measured RLoss where any did."""
    alike: dict[str, dict[str, Evaluation]] = defaultdict(dict)
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.measured and (not protocol or _is_of(evaluation, protocol)):
                alike[evaluation.key].setdefault(run.name, evaluation)
    if protocol and runs and not alike:
        names = sorted({e.name for run in runs for e in run.evaluations if e.name})
        raise UserError(f"--protocol {protocol}: no run was measured by it, only by {', '.join(names) or 'its recipe'}")

    def worth(same: dict[str, Evaluation]) -> tuple[bool, int, int]:
        networks = [n for e in same.values() for n in e.networks.values()]
        first = next(iter(same.values()))
        losses = of_role("RLoss", first.quantities)
        return any(name in n.test for n in networks for name in losses), len(same), max(len(n.test) for n in networks)

    return next(iter(max(alike.values(), key=worth).values())) if alike else None


def _is_of(evaluation: Evaluation, protocol: str) -> bool:
    return re.search(rf"(^|-){re.escape(protocol)}(-|$)", evaluation.name) is not None


def _once(runs: Sequence[MeasuredRun]) -> tuple[list[MeasuredRun], list[LeftOut]]:
    """Each training once: those of the same configuration and seed, or of the same weights, are one.

    Kept is the one trained here, and of which most networks were measured.
    """
    number = {id(run): (i, run.seed) for i, c in enumerate(configurations(runs)) for run in c.runs}
    kept: list[MeasuredRun] = []
    twice: list[LeftOut] = []
    measured = {id(run): len({label for e in run.evaluations for label in e.networks}) for run in runs}
    for run in sorted(runs, key=lambda run: (not run.trained_here, -measured[id(run)])):
        same = [k for k in kept if number[id(k)] == number[id(run)] or _weights(k) & _weights(run)]
        if same:
            twice.append(LeftOut(run.name, f"the same network as {same[0].name}"))
        else:
            kept.append(run)
    return kept, twice


def _weights(run: MeasuredRun) -> set[str]:
    return {fingerprint for e in run.evaluations if (fingerprint := e.weights.get("last"))}


def _take(runs: Sequence[MeasuredRun], main: Evaluation) -> list[tuple[Evaluation, list[str]]]:
    """Give runs their numbers: those of the main protocol, and of others the measures that it does not know.

    Of another protocol only with the same radius and data, and each measure from one for all runs: the one that most
    of them have. Returns the others, and what was taken from each.
    """
    merged = [_by_key(run) for run in runs]
    for run, mine in zip(runs, merged, strict=True):
        run.networks = {label: network for label, network in mine[main.key].items() if network.test}
    known = {named for run in runs for n in run.networks.values() for named in n.named}
    threat = [main.setup[name] for name in THREAT]
    first = {e.key: e for run in runs for e in run.evaluations if [e.setup[n] for n in THREAT] == threat}
    shared = Counter(key for mine in merged for key in mine if key in first and key != main.key)
    others = []
    for key, _ in shared.most_common():
        new = {named for mine in merged for n in mine.get(key, {}).values() for named in n.named} - known
        new -= {("gap", name) for _, name in new if ("test", name) not in new}
        for run, mine in zip(runs, merged, strict=True):
            for label, other in mine.get(key, {}).items():
                if new and label in run.networks:
                    run.networks[label] = _with(run.networks[label], other, new)
        known |= new
        others += [(first[key], sorted({name for _, name in new}))] if new else []
    return others


def _by_key(run: MeasuredRun) -> dict[str, dict[str, Network]]:
    """The networks of each protocol, though measured by several commands."""
    by_key: dict[str, dict[str, Network]] = defaultdict(dict)
    for evaluation in run.evaluations:
        for label, network in evaluation.networks.items():
            if network.named:
                by_key[evaluation.key].setdefault(label, network)
    return by_key


def _with(network: Network, other: Network, new: set[tuple[str, str]]) -> Network:
    parts = {
        part: getattr(network, part) | {n: value for n, value in getattr(other, part).items() if (part, n) in new}
        for part in PARTS
    }
    return network._replace(**parts)


def _in_other_norms(runs: Sequence[MeasuredRun], norm: str) -> Iterator[LeftOut]:
    """Evaluations of runs that have others in the report's norm."""
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.measured and (other := evaluation.setup["norm"]) != norm:
                measured = evaluation.name or "its recipe's measures"
                yield LeftOut(f"{run.name}, {measured}", f"in the norm {other}, the report is in {norm}")


def _landscapes(runs: Sequence[MeasuredRun], twice: set[str], norm: str) -> tuple[list[MeasuredRun], list[LeftOut]]:
    """The runs whose landscapes were measured as most were, in the report's norm."""
    every = [run for run in runs if run.landscape and run.name not in twice]
    in_norm = [run for run in every if run.landscape and run.landscape.norm == norm]
    keys = Counter(run.landscape.key for run in in_norm if run.landscape)
    main = keys.most_common(1)[0][0] if keys else ""
    alike = [run for run in in_norm if run.landscape and run.landscape.key == main]
    reason = "measured otherwise than the other landscapes"
    left_out = [
        LeftOut(f"{r.name}, its landscape", reason if r in in_norm else f"not in the report's norm, {norm}")
        for r in every
        if r not in alike
    ]
    return alike, left_out


def _difference(run: MeasuredRun, main: Evaluation | None) -> str:
    """Why a run's numbers do not go with the others'."""
    mine = [e for e in run.evaluations if e.measured]
    if not mine or main is None:
        return "trained, but not measured" if run.records else "not measured"
    there = _paths(main)
    here = min(map(_paths, mine), key=lambda h: sum(h.get(k) != there.get(k) for k in {*h, *there}))
    named = f"hookflat eval's {main.name}" if main.name else "the recipe's own measures"
    if not here.keys() & {path for path in there if "examples" in path}:
        return f"not measured by the protocol of the others ({named})"
    path = next((path for path in (*there, *here) if as_key(here.get(path)) != as_key(there.get(path))), ())
    name = ".".join(path[1:] if path[:1] == ("stages",) else path)
    return f"measured otherwise: {name} is {here.get(path)}, {there.get(path)} for the others"


def _paths(evaluation: Evaluation) -> dict[tuple[str, ...], Any]:
    return dict(flat(evaluation.setup))


def _only_landscape(run: MeasuredRun) -> str:
    return " (only its landscape is used)" if run.landscape else ""
