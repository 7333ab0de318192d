"""Write docs/examples/early_stopped.md from the records: `python docs/make_early_stopped.py`. A test checks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from hookflat.reporting.gathering import gather
from hookflat.reporting.runs import Network
from hookflat.reporting.statistics import spearman
from hookflat.reporting.table import method_titles, table1
from hookflat.reporting.trust import raised

PLACE = Path(__file__).resolve().parent / "examples"
RECORDS = PLACE / "cifar10-mini" / "records"
EARLY = PLACE / "cifar10-mini" / "early_stopped"
HEAD = """# Early-stopped networks by the whole protocol

Made from records by `python docs/make_early_stopped.py`. The study of [CIFAR-10 at 16 pixels](README.md) measures its
early-stopped networks on test images; fourth seeds, here, on training images and in the worst case, too, and by every
measure of `critics` and `trust` ([records](cifar10-mini/early_stopped), which have the other numbers):

```sh
hookflat run at --with scales/cifar10-mini --set run.seed=3 --out runs/table1/at-3
hookflat eval runs/table1/at-3 --protocol mini --which best
hookflat eval runs/table1/at-3 --protocol critics --which best --set 'eval.attack.trust.sibling="runs/table1/at-0"'
```

`critics` had the measures of weights and along the attack on test images alone then. The records of {complete}
configurations have what it has on training images since, of the last networks, too (`critics-last-best`, `mini-last`);
their numbers on test images are the same.

Rows as in Table 1, of {count} twenty configurations. RErr by AutoAttack's two APGDs, in %. Last networks: the
study's other seeds, mean ± standard deviation, flatness on training images of the first (of AT of two). Late
multi-step is AT up to its sixteenth epoch: early stopping gives the same network.

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


def cell(networks: Sequence[Network], key: str, digits: int) -> str:
    """Mean and standard deviation of the networks that have the number, errors in %."""
    values = [value for n in networks if not math.isnan(value := n.value(key))]
    if not values:
        return ""
    values = [100 * value for value in values] if key.startswith("rerr") else values
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def page() -> str:
    """The text of docs/examples/early_stopped.md."""
    study, early = gather([RECORDS]), gather([EARLY])
    titles = method_titles(table1(study))
    order = sorted(early.runs, key=lambda run: list(titles).index(run.method))
    lines, signs = [], []
    for run in order:
        last = [other.networks["last"] for other in study.runs if other.method == run.method]
        best = run.networks["best"]
        for name, state, networks in (
            (titles[run.method], "last", last),
            ("", f"early stopped, epoch {best.epoch}", [best]),
        ):
            lines.append([name, state, *(cell(networks, *number) for number in NUMBERS)])
        flags = raised(best.test, early.quantities)
        told = "; ".join(flags) or "none" if flags is not None else ""
        signs.append([titles[run.method], *(f"{100 * best.value(key):.1f}" for key in SIGNS), told])
    head = HEAD.replace("{count}", f"{len(order)} of its" if len(order) < 20 else "all its")
    head = head.replace("{complete}", str(sum(1 for _ in EARLY.glob("*/eval/mini-last"))))
    found = {e.weights["best"]: run.networks["best"] for run in order for e in run.evaluations if "best" in e.weights}
    different = list(found.values())
    told = "".join(map(row, claims(different)))
    claim = CLAIM.replace("{count}", str(len(different)))
    return head + "".join(map(row, lines)) + claim + told + TRUST + "".join(map(row, signs))


def claims(networks: Sequence[Network]) -> list[list[str]]:
    """Spearman of each measure with each outcome, with intervals."""
    lines = []
    for name, measure in MEASURES.items():
        pairs = [[[n.value(key) for n in networks] for key in (measure, outcome)] for outcome in OUTCOMES]
        found = [spearman(x, y, clusters=range(len(networks))) for x, y in pairs]
        lines.append([name, *(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in found)])
    return lines


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    (PLACE / "early_stopped.md").write_text(page(), encoding="utf-8")
