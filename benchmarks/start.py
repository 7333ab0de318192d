"""What a command costs before it works: processor time over that of the import without which it cannot be.

    python benchmarks/start.py [--times 9] [--only COMMAND ...]

Every command and its base take turns, each in a process of its own, after one turn of both that warms the files and
keeps bytecode; of the differences the median and the range. Processor time, of all threads, hardly counts what else
runs on the machine, but on a loaded core everything takes longer: look at the bases. typer imports pydantic when it
reads a command's first option, so the base of `recipes` is a command of typer's alone that has one. The last row is the
whole of `run at` on the embedded digits, to the end of its first step and the checkpoint that `--max-steps 1` writes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

A_COMMAND = """import typer
def command(option: bool = False): pass
typer.run(command)"""
COMMANDS: dict[str, tuple[list[str], str]] = {
    "--help": (["--help"], "import typer"),
    "--version": (["--version"], "import typer"),
    "recipes": (["recipes"], A_COMMAND),
    "plugins": (["plugins"], "import torch"),
    "show": (["show", "at"], "import torch"),
    "run": (["run", "at", "--max-steps", "1"], "import torch"),
}
"""What is started, and the base that is taken off."""


def processor_time(arguments: list[str], folder: str) -> float:
    """Seconds that a process of Python takes, its own children included."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=kept, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    print("| hookflat ... | base | base takes | and over it | range |\n|---|---|---|---|---|")
    for name in options.only:
        arguments, base = COMMANDS[name]
        bases, more = [], []
        for turn in range(options.times + 1):
            with tempfile.TemporaryDirectory() as folder:
                alone = processor_time(["-c", base], folder)
                whole = processor_time(["-m", "hookflat", *arguments], folder)
            if turn:
                bases.append(alone)
                more.append(whole - alone)
        spread = f"{min(more):+.2f} to {max(more):+.2f} s"
        taken = f"{statistics.median(bases):.2f} s | {statistics.median(more):+.2f} s"
        told = "a command of typer's" if base == A_COMMAND else base
        print(f"| {' '.join(arguments)} | {told} | {taken} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
