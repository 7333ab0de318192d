"""Draw the trainings of the study: `python draw.py OUT.png LABEL=RUN ...`.

On the left the loss that training sees, on its own adversarial examples; on the right RErr by PGD on training images,
which the plugin `catastrophic_overfitting` records after every epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    options = parser.parse_args()
    figure = Figure(figsize=(8, 3), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    for label, _, run in (text.partition("=") for text in options.runs):
        lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        training = [line for line in lines if line["stage"] == "training"]
        attacked = [line for line in lines if line["stage"] == "catastrophic_overfitting"]
        losses.plot([line["epoch"] for line in training], [line["loss"] for line in training], label=label)
        errors.plot([line["epoch"] for line in attacked], [100 * line["rerr_pgd"] for line in attacked])
    losses.set(xlabel="epoch", ylabel="loss in training", ylim=(0, None))
    errors.set(xlabel="epoch", ylabel="RErr (PGD-10) in training, %", ylim=(70, 101))
    losses.legend(frameon=False, loc="center right")
    for axes in (losses, errors):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
