"""The measures of protocol `full` on five networks of digits: `python benchmarks/measures.py` writes its page.

Runs and evaluations that are complete are not made again, so the command may be stopped and started.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path

from hookflat import Quantity, Results, RunFolder
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.options import build
from hookflat.records.quantities import is_error_of, quantity

PAGE = Path(__file__).parents[1] / "docs" / "measured.md"
METHODS = {
    "at": "AT",
    "trades": "TRADES",
    "at_awp": "AT-AWP",
    "entropy_sgd": "Entropy-SGD",
    "label_noise": "label noise",
}
EXAMPLES = 200
HEAD = f"""# The measures of protocol `full` on five networks

Made by `python benchmarks/measures.py`: `hookflat run NAME` (seed 0), then `hookflat eval runs/NAME-0 --protocol full`
on the first {EXAMPLES} test and training digits, one CPU thread. Errors and shares in %; ± is the standard error over
weight perturbations, attempts or probes; seconds are the median over the networks and both splits, on two shared cores
without AVX-512. Clean error is of all test digits (700, or 500 where 200 are held out). Lower is flatter everywhere.

"""


def main() -> None:
    """Train and measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    results = {name: measured(asked.runs / f"{name}-0", name) for name in METHODS}
    PAGE.write_text(HEAD + table(results), encoding="utf-8")


def measured(folder: Path, name: str) -> Results:
    """What the full protocol measured."""
    hookflat = [sys.executable, "-m", "hookflat"]
    if RunFolder(folder).read_results() is None:
        subprocess.run([*hookflat, "run", name, "--out", str(folder)], check=True)
    stages = ("robustness", "flatness", "curvature")
    sizes = [part for stage in stages for part in ("--set", f"eval.{stage}.examples={EXAMPLES}")]
    sizes += ["--set", "eval.curvature.take=first"]  # as all others
    command = [*hookflat, "eval", str(folder), "--protocol", "full", *sizes, "--set", "run.threads=1"]
    subprocess.run(command, check=True)
    results = RunFolder(folder).evaluation("full-last").read_results()
    assert results is not None
    return results


def table(results: dict[str, Results]) -> str:
    """One row a number, one column a network, and the seconds of the measure that gave it."""
    lines = [f"| | {' | '.join(METHODS.values())} | seconds |", f"|---|{'---|' * (len(METHODS) + 1)}"]
    first = next(iter(results.values()))
    entries = [result.models["last"] for result in results.values()]
    owners = {}
    for stage in first.protocol.stages.values():
        for measure, options in stage.measures.items():
            plugin = build(Catalogue().find(measure).load(), options)
            owners |= dict.fromkeys(plugin.numbers(), measure)
    shown: set[str] = set()
    for key in (k for k in entries[0].test if not is_error_of(k)):
        owner = owners[key]
        times = [s for e in entries for label, s in e.seconds.items() if label.split("/")[1] == owner]
        seconds = f"{statistics.median(times):.1f}" if times and owner not in shown else ""
        shown.add(owner)
        what = quantity(key, first.numbers)
        for split in ("test", "train"):
            cells = [cell(getattr(e, split), key, what) for e in entries]
            if any(c != "-" for c in cells):
                lines.append(f"| {what.label}, {split} | {' | '.join(cells)} | {seconds} |")
                seconds = ""
    return "\n".join(lines) + "\n"


def cell(values: dict[str, float], key: str, what: Quantity) -> str:
    """A number with its standard error."""
    if key not in values:
        return "-"
    value, digits = values[key], 1
    if what.unit == "share":
        value *= 100
    else:  # three significant digits, at most four decimals
        digits = min(4, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 2
    error = values.get(f"{key}_stderr")
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


if __name__ == "__main__":
    main()
