"""README and the pages of docs are one path: every command parses; all of them, in order, run in a fresh copy."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import timm
import torch
import typer
from image_files import parquet, pictures, png

from hookflat.cli import app

ROOT = Path(__file__).parents[1]
PATH = ["README.md", "docs/tutorial.md", "docs/recipes.md", "docs/studies.md", "docs/sharing.md"]
"""The pages in the order of a reader, and all of their commands in one folder."""
PAGES = sorted({*PATH, *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))})
COMMAND = typer.main.get_command(app)

ELSEWHERE = {
    r"pip install": "the environment of the tests is installed",
    r"accelerate launch": "wants GPUs; tests/test_processes.py launches several processes",
    r"robustbench:|study zoo": "downloads; tests/test_zoo.py has networks as RobustBench writes them",
    r"hookflat push|hub:": "sends to the hub; tests/test_sharing.py has a stand-in",
    r"--launcher slurm": "wants a cluster; tests/test_study.py submits to submitit's local one",
    r"hookflat watch": "serves until it is stopped; tests/test_watching.py opens the page",
    r"pytest": "this",
}
"""What is not run here, and why. It is parsed all the same."""


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(text):
    """Every command of the shell blocks of a text, continued lines joined, comments left out."""
    for language, block in re.findall(r"```(sh|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield line.removeprefix("$ ").partition("  #")[0].strip(), words


def hookflat_arguments(words):
    """What follows `hookflat`, or `-m hookflat`, in a command; None where it is another's."""
    words = [w for w in words if not w.startswith("$")]
    if "hookflat" not in words:
        return None
    return words[words.index("hookflat") + 1 :]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page):
    for line, words in commands(text_of(page)):
        arguments = hookflat_arguments(words)
        if arguments is None or "&&" in words:
            continue
        with click.Context(COMMAND) as context:
            try:
                name, command, rest = COMMAND.resolve_command(context, arguments)
                command.make_context(name, rest, parent=context)
            except click.ClickException as error:
                pytest.fail(f"{page}: {line}: {error.format_message()}")


def small(folder):
    """Budgets of a second in the copy's own recipes; names, tables and commands stay."""

    def change(name, *pairs):
        file = folder / "recipes" / name
        text = file.read_text()
        for old, new in pairs:
            text, count = re.subn(old, new, text, flags=re.M)
            assert count, (name, old)
        file.write_text(text)

    counts, epochs = (r"^examples = [\d_]+", "examples = 4"), (r"^epochs = \d+", "epochs = 2")
    holdout = (r"^holdout = \d+", "holdout = 20")
    change(
        "at.toml",
        counts,
        epochs,
        holdout,
        (r"^train = 384.*", "train = 64\ntest = 60"),
        (r"^name = \"resnet_small\"", 'name = "resnet_small"\nwidth = 8'),
        (r"^(\[eval.final.robust_loss\])", r"\1\nrestarts = 1"),
        (r"^(\[eval.final_flatness.average_flatness\])", r"\1\nsamples = 2\nreference_restarts = 1"),
    )
    for scale in ("cifar10", "cifar10-mini"):
        path = (r"^path = .*", 'path = "cifar10-folder"')
        change(f"scales/{scale}.toml", counts, epochs, holdout, path)
    passes = [(r"^restarts = 10", "restarts = 1"), (r"^samples = 10", "samples = 2"), (r"^(steps) = 20", r"\1 = 2")]
    change("scales/cifar10.toml", *passes, (r"^reference_restarts = 10", "reference_restarts = 1"))
    change("scales/cifar10-mini.toml", (r"^train = .*", "train = 64"), (r"^test = .*", "test = 60"))
    change("scales/cifar10.toml", (r"^name = \"resnet18\"", 'name = "resnet_small"\nwidth = 8'))
    average = (r"^(\[eval\.\w+\.average_flatness\])", r"\1\nsamples = 2\nsteps = 2\nreference_restarts = 1")
    worst = (r"^(\[eval\.\w+\.worst_flatness\])", r"\1\nattempts = 1\nsweeps = 1\nsteps = 2\nreference_restarts = 1")
    attack = (r"^(\[eval\.\w+\.autoattack\])", r"\1\nversion = 'custom'\nattacks = ['apgd-ce']")
    change("protocols/paper.toml", counts, attack, average, worst)
    change("protocols/quick.toml", counts)
    change("protocols/digits.toml", counts, average, worst, (r"^attacks = .*", "attacks = ['apgd-ce']"))
    change("protocols/landscapes.toml", counts)
    change("studies/table1.toml", (r"^runs = \[[^]]*\]", 'runs = ["at", "mart"]'), (r"^seeds = .*", "seeds = [0]"))
    change("studies/scaling.toml", (r"^runs = .*", 'runs = ["trades"]'))
    grids = folder / "recipes" / "studies" / "hyperparameters.toml"
    first, at, trades, *_ = grids.read_text().split("[[study.grid]]")
    grids.write_text("[[study.grid]]".join([first, at, trades.replace("[1.0, 3.0, 6.0, 9.0]", "[1.0, 9.0]")]))


@pytest.fixture
def clone(tmp_path):
    """A copy of the repository with small budgets, the reader's own files, and the command on the path."""
    folder = tmp_path / "hookflat"
    ignored = shutil.ignore_patterns("__pycache__", "runs", "evals")
    for name in ("hookflat", "hookflat_plugins", "recipes", "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    small(folder)
    sets = {}
    for split, count in (("train", 64), ("test", 60)):
        x, y = pictures(count, seed=count)
        sets[split] = ([png(image) for image in x], np.asarray(y))
    parquet(folder / "cifar10-folder", **sets)
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), folder / "checkpoint.pt")
    shim = tmp_path / "bin" / "hookflat"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hookflat "$@"\n')
    shim.chmod(0o755)
    return folder


@pytest.mark.slow
def test_every_command_runs_in_order_in_a_fresh_copy(clone):
    environment = os.environ | {
        "PATH": f"{clone.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "HOOKFLAT_CACHE": str(clone / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for page in PATH:
        text = text_of(page)
        for name, file in re.findall(r"```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)```", text, re.S):
            (clone / name).write_text(file)
        for line, _ in commands(text):
            if any(re.search(pattern, line) for pattern in ELSEWHERE):
                continue
            began = time.perf_counter()
            done = subprocess.run(
                ["bash", "-ec", line], cwd=clone, env=environment, capture_output=True, text=True, check=False
            )
            print(f"{time.perf_counter() - began:6.1f} s  {page}: {line}", flush=True)  # pytest -s shows it
            assert done.returncode == 0, f"{page}: {line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            assert "Traceback" not in done.stderr
            assert "complete already" not in done.stdout or "torch.distributed" in line, line
    runs = sorted(folder.name for folder in (clone / "runs").iterdir())
    for name in ("trades-0", "mine+beta=3-0", "mine+cifar10-0", "trades+smoothing+tau=0.1-0", "first+xi=0.005-0"):
        assert name in runs
