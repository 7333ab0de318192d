"""SIGUSR1, which Slurm sends before a job's time is over: a checkpoint after the step at work, then the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from hookflat.errors import Stopped
from hookflat.training import checkpoints
from hookflat.training.run import Run

TOGETHER = 25
"""Steps between which several processes agree whether to stop: agreeing makes the device wait."""


@contextmanager
def listening(run: Run) -> Generator[None]:
    """Inside, the signal is noted in `run.stopping`; `stop_if_asked` acts on it."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda number, frame: setattr(run, "stopping", True))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN if run.stopping else before or signal.SIG_DFL)  # once is enough


def stop_if_asked(run: Run, *, saved: bool, together: bool = False) -> None:
    """Write a checkpoint unless this step is `saved`, and raise Stopped, where the signal came.

    `together`: all processes are sure to be here; else they look every `TOGETHER` steps.
    """
    asked = run.stopping
    if run.processes > 1:
        if not together and run.step % TOGETHER:
            return
        asked = bool(run.accelerator.reduce(torch.tensor(float(asked), device=run.device)))
    if asked:
        if not saved:
            checkpoints.save(run)
        raise Stopped(signal.SIGUSR1)
