"""What speaks against trusting an RErr: flags that were raised, and numbers that others measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hookflat.records.quantities import Quantity
from hookflat.reporting.external import external
from hookflat.reporting.gathering import Gathered
from hookflat.reporting.phrases import counted
from hookflat.reporting.runs import MeasuredRun

_SHOWN = 4
"""Names in a sentence."""


def raised(numbers: Mapping[str, float], declared: Mapping[str, Quantity]) -> list[str] | None:
    """The raised flags among the numbers of a network, in words; None where none was looked at."""
    looked = [name for name, what in declared.items() if what.unit == "flag" and name in numbers]
    return [declared[name].label for name in looked if numbers[name]] if looked else None


def flags_of(runs: Iterable[MeasuredRun], declared: Mapping[str, Quantity]) -> str:
    """A cell of the table: "ok", or how many flags the runs' networks raised; "" where none was looked at."""
    every = [raised(network.test, declared) for run in runs for network in run.networks.values()]
    looked = [flags for flags in every if flags is not None]
    if not looked:
        return ""
    words = dict.fromkeys(word for flags in looked for word in flags)
    return f"{len(words)} flag{'s' if len(words) > 1 else ''}" if words else "ok"


def flagged(gathered: Gathered) -> list[tuple[MeasuredRun, str, str]]:
    """(run, network, its raised flags in words) of every network that raised one."""
    every = [
        (run, n.label, raised(n.test, gathered.quantities)) for run in gathered.runs for n in run.networks.values()
    ]
    return [(run, label, "; ".join(flags)) for run, label, flags in every if flags]


def trust_lines(gathered: Gathered) -> list[str]:
    """Sentences: which networks raised which flag, and where an external RErr is the higher one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for run, label, flags in flagged(gathered):
        alike.setdefault((label, flags), []).append(run.name)
    told = [f"RErr of {_listed(names)} ({label}) may be too low: {flags}." for (label, flags), names in alike.items()]
    networks = [network.test for run in gathered.runs for network in run.networks.values()]
    looked = sum(raised(numbers, gathered.quantities) is not None for numbers in networks)
    if looked and not told:
        told.append(
            f"Signs of an RErr that is too low were looked for on {counted(looked, 'network')}, and none was found."
        )
    return told + _external(gathered)


def _listed(names: list[str]) -> str:
    """The first names, and how many more."""
    shown = names if len(names) <= _SHOWN + 1 else [*names[:_SHOWN], f"{len(names) - _SHOWN} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _external(gathered: Gathered) -> list[str]:
    """Ours against others', run by run."""
    ours, told, runs = gathered.playing("RErr"), [], {run.name: run for run in gathered.runs}
    for name, theirs in external(gathered).items():
        here = runs[name].networks["last"].test.get(ours) if "last" in runs[name].networks else None
        beside = "" if here is None else f", ours {100 * here:.1f} %"
        higher = ": the external attack breaks more" if here is not None and theirs.rerr > 100 * here else ""
        told.append(f"RErr of {name}: {theirs.rerr:.1f} % ({theirs.source}){beside}{higher}.")
    return told
