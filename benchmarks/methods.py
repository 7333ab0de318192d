"""Every method on the embedded digits, several seeds: `python benchmarks/methods.py` writes docs/digits.md.

Runs that are complete are not run again, so the command may be stopped and started; `--jobs` run at once. A row
of which there is no run stays as it is on the page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hookflat import RunFolder
from hookflat.recipe.shipped import recipes_folder

PAGE = Path(__file__).parents[1] / "docs" / "digits.md"
HEAD = """# Every method on the embedded digits

Made by `python benchmarks/methods.py`: mean ± standard deviation over seeds 0, 1, ... as far as a row has them; errors
in %, on 500 test digits (training column: the 384 labelled training digits), PGD-20 with 10 restarts, last epoch;
flatness is average-case flatness in RLoss (xi = 0.5, 10 perturbations; lower is flatter); CPU seconds are the median of
whole runs, final measures included, those during training not. Sorted by RErr. Another CPU rounds differently, and a
training then ends elsewhere within its spread over seeds.

| recipe | clean error | RErr (PGD) | RLoss, test | RLoss, train | flatness | CPU seconds | seeds |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
## What it shows, and what does not help here

- Every method of the paper's good third (unlabeled, cyclic, autoaugment, at_awp, label_noise, weight_clipping) has a
  lower RLoss and a flatter place than `at`. In RErr autoaugment and label_noise gain nothing. Both leave the training
  digits unlearnt (RLoss, train), which takes away robust overfitting, and likely some robustness with it: turning,
  shearing and inverting 8x8 digits changes more than the same on photographs.
- `entropy_sgd` and `fast_at` have few steps: 360 of which five make one outer step, and a fifth of the epochs. They are
  flatter than `at`, at a lower or equal RLoss, and have not learnt the training digits.
- `label_smoothing` lowers RLoss by low confidence (RLoss, train), not RErr.
- `swa`, `weight_averaging`, `friendly`, `ignore_incorrect` and `prevent_label_leaking` differ from `at` by less than
  the spread over seeds.
- `constant` and `adam`, the sharpest networks but for `timm` (another architecture), are among the least robust.
- `weight_decay` is much more robust here than in the paper, where it is average.
- `adr`, `ikl`, `lbgat` and `state_of_the_art` have not learnt the digits in 360 steps (RLoss, train); they are set for
  trainings of tens of thousands.
- Of the methods that train on single steps `free_at` and `n_fgsm` are at least as robust as `at` here, and flatter;
  none breaks down. Nor does FGSM from the image itself, at radii of 0.2 and 0.3 over all epochs: RErr by PGD-5 on
  training digits ends at 2 and 13 % (`--set attack.steps=1 --set attack.start=zero --set attack.keep=last --set
  schedule.milestones=[]`, the step as long as the radius, one seed). On `scales/cifar10-mini` `fast_at` does not either
  at 16/255. What `n_fgsm` and `grad_align` are for is to be seen on 32 pixels and one convolution, [where FGSM
  collapses](examples/README.md#where-training-on-single-steps-collapses) and they do not.
- `vit`, a transformer of 257,000 parameters, learns nothing from scratch at 0.15, and is no row for that. At 0.05, its
  recipe's radius (seeds 0, 1 and 2, as above): clean error 11.3 ± 0.8 %, RErr (PGD) 26.4 ± 1.6 %, RLoss 1.32 ± 0.06
  (train 1.04 ± 0.07), flatness 0.55 ± 0.06.
- AT in L2, as measured by `hookflat eval RUN --protocol norms` (700 test digits, seeds 0, 1 and 2; `hookflat run at
  --set attack.norm=L2 --set attack.eps=0.8 --set attack.step_size=0.2 --set eval.eps=0.8 --set eval.step_size=0.2`,
  and the radii of the protocol set to 0.15, 0.8 and 0): RErr in L2 at 0.8 is 68.8 ± 1.5 % where `at`, trained in
  L-infinity, has 75.9 ± 0.7 %, and in L-infinity at 0.15 it is 55.8 ± 1.8 % where `at` has 49.5 ± 1.2 %. Each is the
  more robust in its own norm. At the recipe's 0.35, far inside L-infinity's ball, L2 gains nothing, nor at 0.3 on
  `scales/cifar10-mini` (one seed: 77.1 and 78.3 % in L2, 77.5 and 78.5 % in L-infinity).
"""
LESS = ("eval.curves", "eval.through_training", "plugins.early_stopping")
"""What the table does not need; it changes neither training nor the final measures."""
TAUGHT = {
    "hat": {"loss.helper": "standard"},
    "kd_swa": {"loss.standard_teacher": "standard", "loss.robust_teacher": "at"},
}
"""Recipes whose options name runs of others, of seed 0."""


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=sorted(r.stem for r in recipes_folder().glob("*.toml")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only-run", action="store_true", help="write no table")
    parser.add_argument("--only-write", action="store_true", help="make no run")
    asked = parser.parse_args()
    jobs = [(name, seed) for seed in range(asked.seeds) for name in asked.recipes]
    teachers = {(teacher, 0) for name, _ in jobs for teacher in TAUGHT.get(name, {}).values()}
    first = sorted(teachers) + [job for job in jobs if job[0] not in TAUGHT and job not in teachers]
    rounds = [] if asked.only_write else [first, [job for job in jobs if job[0] in TAUGHT]]
    with ThreadPoolExecutor(asked.jobs) as pool:
        for some in rounds:
            list(pool.map(lambda job: run(*job, asked.out), some))
    if not asked.only_run:
        lines = written() | {name: line for name in asked.recipes if (line := row(name, asked.out, asked.seeds))}
        ranked = sorted(lines.values(), key=lambda line: float(line.split(" | ")[2].split()[0]))
        PAGE.write_text(HEAD + "\n".join(ranked) + "\n" + TAIL, encoding="utf-8")


def run(name: str, seed: int, out: Path) -> None:
    """One run, unless it is complete."""
    folder = out / f"{name}-{seed}"
    if RunFolder(folder).read_results():
        return
    command = [sys.executable, "-m", "hookflat", "run", name, "--set", f"run.seed={seed}", "--out", str(folder)]
    command += ["--set", "run.threads=1"]
    command += [f"--set={key}={out / f'{teacher}-0'}" for key, teacher in TAUGHT.get(name, {}).items()]
    teaches = seed == 0 and any(name in taught.values() for taught in TAUGHT.values())  # by its best network
    less = [table for table in LESS if not (teaches and table == "plugins.early_stopping")]
    command += [part for table in less for part in ("--set", f"{table}.enabled=false")]
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}-{seed}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(process.pid, 0)
    if status == 0:
        (folder / "cpu_seconds.json").write_text(json.dumps(used.ru_utime + used.ru_stime))
    print(name, seed, "done" if status == 0 else f"failed, see {log.name}", flush=True)


def written() -> dict[str, str]:
    """The lines of the page as it is, by recipe."""
    return {line[1]: line[0] for line in re.finditer(r"^\| `(\w+)` \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.M)}


def row(name: str, out: Path, seeds: int) -> str | None:
    """The table's line of one method, or None where no run is complete."""
    folders = [out / f"{name}-{seed}" for seed in range(seeds)]
    last = {f: results.models["last"] for f in folders if (results := RunFolder(f).read_results())}
    if not last:
        return None

    def shown(split: str, number: str, factor: float = 1.0, digits: int = 2) -> str:
        values = [factor * getattr(numbers, split)[number] for numbers in last.values()]
        mean = f"{statistics.mean(values):.{digits}f}"
        return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean

    times = [json.loads(f.read_text()) for folder in last if (f := folder / "cpu_seconds.json").exists()]
    cells = [
        f"`{name}`",
        shown("test", "clean_error", factor=100, digits=1),
        shown("test", "rerr_pgd", factor=100, digits=1),
        shown("test", "rloss"),
        shown("train", "rloss"),
        shown("test", "average_flatness"),
        f"{statistics.median(times):.0f}" if times else "-",
        str(len(last)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
