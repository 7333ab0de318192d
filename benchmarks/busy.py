"""How much longer a run takes where every core is held by another process, which costs half of it at the least.

    python benchmarks/busy.py [RECIPE] [--steps 30] [--pairs 3] [--most 2.5]

The machine must be otherwise idle: nothing here can tell other people's work from the processes that this starts, one a
core, at the same priority, which do nothing but count. The whole command `hookflat run RECIPE --max-steps STEPS`, from
its start to its checkpoint, takes turns alone and among them, after one run that warms the files. Ends with exit code 1
where the median ratio is above --most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager

from hookflat.threads import cores


@contextmanager
def held_cores() -> Generator[None]:
    """Inside, as many processes as there are cores compute all the time."""
    count = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # and not longer than this process lives
    counting = [subprocess.Popen([sys.executable, "-c", count]) for _ in range(cores())]
    try:
        time.sleep(1)
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def wall_time(recipe: str, steps: int) -> float:
    """Seconds of the whole command, as a user starts it: with no say on threads from the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hookflat", "run", recipe, "--max-steps", str(steps), "--out", folder]
        began = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="at")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--most", type=float, default=2.5, help="times the time alone")
    options = parser.parse_args()
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"a load of {load:.1f} before anything began: these numbers say nothing unless the machine is idle")
    wall_time(options.recipe, 1)
    alone, among = [], []
    for _ in range(options.pairs):
        alone.append(wall_time(options.recipe, options.steps))
        with held_cores():
            among.append(wall_time(options.recipe, options.steps))
        print(f"alone {alone[-1]:.1f} s, among {cores()} others {among[-1]:.1f} s: {among[-1] / alone[-1]:.2f}")
    ratio = statistics.median(b / a for a, b in zip(alone, among, strict=True))
    print(f"{options.recipe}: {ratio:.2f} times its time alone; wanted: at most {options.most:g}")
    sys.exit(ratio > options.most)


if __name__ == "__main__":
    main()
