"""Write docs/examples/early_stopped.md from the records: `python docs/make_early_stopped.py`. A test checks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hookflat.reporting.gathering import gather
from hookflat.reporting.runs import Network
from hookflat.reporting.statistics import spearman
from hookflat.reporting.table import method_titles, table1
from hookflat.reporting.trust import raised

PLACE = Path(__file__).resolve().parent / "examples"
RECORDS = PLACE / "cifar10-mini" / "records"
FOURTH = PLACE / "cifar10-measures" / "records"
HEAD = """# Early-stopped networks by the whole protocol

Made from records by `python docs/make_early_stopped.py`: the fourth seeds of [CIFAR-10 at 16 pixels](README.md), which
are measured by all of `mini` and `critics`, on test and training images, last and early stopped
([report](cifar10-measures/report.md), [records](cifar10-measures/records)):

```sh
hookflat run at --with scales/cifar10-mini --set run.seed=3 --out runs/table1/at-3
hookflat eval runs/table1/at-3 --protocol mini --which last --which best
hookflat eval runs/table1/at-3 --protocol critics --which last --which best \\
    --set 'eval.attack.trust.sibling="runs/table1/at-0"'
```

Rows as in Table 1. RErr by AutoAttack's two APGDs, in %. Late multi-step is AT up to its
sixteenth epoch: early stopping gives the same network.

| | state | RErr, test | train | RLoss, test | train | flatness, test | train | worst case |
|---|---|---|---|---|---|---|---|---|
"""
CLAIM = """
Over these {count} networks (AT and late multi-step are one) flatness goes with (Spearman, 95 % intervals):

| | RLoss | RErr | gap of RLoss | gap of RErr |
|---|---|---|---|---|
"""
TRUST = """
Is their RErr too low? On 500 test images, RErr in % by PGD from one start, with more steps, one step and larger radii,
and what Square breaks besides. AT's examples: the adversarial examples of AT's first seed.

| | RErr (PGD) | four times the steps | one step | 2 eps | 4 eps | Square alone | AT's examples | flags |
|---|---|---|---|---|---|---|---|---|
"""
NUMBERS = (
    ("rerr_autoattack", 1),
    ("rerr_autoattack train", 1),
    ("rloss", 2),
    ("rloss train", 2),
    ("average_flatness", 2),
    ("average_flatness train", 2),
    ("worst_flatness", 4),
)
MEASURES = {
    "average case": "average_flatness",
    "average case, on training images": "average_flatness train",
    "worst case": "worst_flatness",
}
OUTCOMES = ("rloss", "rerr_autoattack", "rloss gap", "rerr_autoattack gap")
SIGNS = ("rerr_one_start", "rerr_four_times_the_steps", "rerr_single_step", "rerr_2eps", "rerr_4eps")
SIGNS += ("broken_by_square_alone", "rerr_transfer")


def cell(network: Network, key: str, digits: int) -> str:
    """A number of the network, errors in %."""
    return f"{(100 if key.startswith('rerr') else 1) * network.value(key):.{digits}f}"


def page() -> str:
    """The text of docs/examples/early_stopped.md."""
    titles, fourth = method_titles(table1(gather([RECORDS]))), gather([FOURTH])
    order = sorted(fourth.runs, key=lambda run: list(titles).index(run.method))
    lines, signs = [], []
    for run in order:
        best = run.networks["best"]
        for name, state, network in (
            (titles[run.method], "last", run.networks["last"]),
            ("", f"early stopped, epoch {best.epoch}", best),
        ):
            lines.append([name, state, *(cell(network, *number) for number in NUMBERS)])
        flags = raised(best.test, fourth.quantities)
        told = "; ".join(flags) or "none" if flags is not None else ""
        signs.append([titles[run.method], *(f"{100 * best.value(key):.1f}" for key in SIGNS), told])
    stopped = {e.weights["best"]: run.networks["best"] for run in order for e in run.evaluations if "best" in e.weights}
    claim = CLAIM.replace("{count}", str(len(stopped)))
    parts = HEAD, *map(row, lines), claim, *map(row, claims([*stopped.values()])), TRUST, *map(row, signs)
    return "".join(parts)


def claims(networks: Sequence[Network]) -> list[list[str]]:
    """Spearman of each measure with each outcome, with intervals."""
    lines = []
    for name, measure in MEASURES.items():
        pairs = [[[n.value(key) for n in networks] for key in (measure, outcome)] for outcome in OUTCOMES]
        estimates = [spearman(x, y, clusters=range(len(networks))) for x, y in pairs]
        lines.append([name, *(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in estimates)])
    return lines


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    (PLACE / "early_stopped.md").write_text(page(), encoding="utf-8")
