"""A first look at a run: its first steps, or one step and one batch of each measure with nothing kept."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from hookflat.functional.brackets import global_state_restored
from hookflat.functional.examples import Examples
from hookflat.recipe.recipe import Recipe
from hookflat.training import checkpoints, loop
from hookflat.training.ending import ending
from hookflat.training.first_step import watched
from hookflat.training.heading import say_training
from hookflat.training.launch import accelerator, check_launch
from hookflat.training.run import Run

EXAMPLES = 4
"""Of each split, that a dry run measures on."""


class FirstLook:
    """A line for each step: loss, seconds; with the last, what memory it took."""

    def __init__(self, run: Run) -> None:
        self.run, self.began = run, time.perf_counter()

    def __call__(self, loss: Tensor) -> None:
        """A step is done."""
        value, now = float(loss), time.perf_counter()
        memory = f"  memory {gigabytes(peak_memory(self.run.device))}"
        self.run.console.say(
            f"step {self.run.step}/{self.run.total_steps}  loss {value:.4f}  {now - self.began:.2f} s{memory}"
        )
        self.began = now


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's, held at most since the start; of a CPU's, this process at its largest.

    Held, not allocated: what a CUDA graph works in counts as allocated only while it is captured.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")  # where there is one: getrusage also counts the process that started this one
    if status.exists() and (largest := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(largest[1])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gigabytes(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@contextmanager
def in_nowhere(recipe: Recipe, *, quiet: bool = True) -> Generator[Run]:
    """A built run whose folder is a temporary one. What goes wrong inside is told as of any run."""
    from accelerate.utils import broadcast_object_list

    check_launch(recipe.run)
    accelerator()  # before anything else begins the group of processes
    with global_state_restored(), tempfile.TemporaryDirectory(prefix="hookflat-") as own:
        place = [own]
        broadcast_object_list(place)  # one folder for every process
        run = Run(recipe, Path(place[0], "run"), quiet=quiet, trial=True)
        with ending(run):
            run.folder.prepare(recipe)
            run.accelerator.wait_for_everyone()
            run.build()
            yield run


def dry_run(recipe: Recipe) -> None:
    """Build everything, make one step and a checkpoint, measure a few examples by every measure; keep nothing."""
    with in_nowhere(recipe, quiet=False) as run:
        say = run.console.say
        say_training(run, resumed=False)
        batch, began = next(run.batches()), time.perf_counter()
        with watched(run):
            loss = float(loop.step(run, batch))
        run.check()
        took, memory = time.perf_counter() - began, gigabytes(peak_memory(run.device))
        say(f"one step: loss {loss:.4f}, {took:.2f} s, memory {memory}")
        checkpoints.save(run)
        model = run.eval_model()
        for name, stage in recipe.stages.items():
            for split in stage.splits:
                whole = run.measurements.subject(model, split, stage.examples, stage.take)
                few = Examples(
                    whole.examples.images.part(0, EXAMPLES * run.processes),
                    batch_size=EXAMPLES,
                    device=run.device,
                    accelerator=run.accelerator,
                )
                subject = replace(whole, examples=few)
                result = run.measurements.stage(name, {split: subject})
                seconds = ", ".join(f"{measure} {s:.1f} s" for measure, s in result[split]["seconds"].items())
                say(f"{name}, {len(few)} {split} examples: {seconds}")
        say("a dry run: nothing was kept")
