"""Signals: SIGTERM and SIGUSR1 end a command as Ctrl-C does, with a message; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from hookflat.errors import Stopped


@contextmanager
def listening() -> Generator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGUSR1 raises Stopped; a SIGINT or SIGTERM after it has its own effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]

    def stop(number: int, frame: FrameType | None) -> None:
        for again in numbers:
            signal.signal(again, signal.SIG_DFL if again in (signal.SIGINT, signal.SIGTERM) else signal.SIG_IGN)
        raise Stopped(number)

    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler or signal.SIG_DFL)


def requeue() -> None:
    """Put this Slurm job back into the queue, where there is one; one of its processes does, not those of a study."""
    from hookflat.studies.execution import WAITS

    job, environment = os.environ.get("SLURM_JOB_ID"), os.environ
    rank = environment.get("RANK", environment.get("SLURM_PROCID", "0"))
    if job is None or rank != "0" or WAITS in environment:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        told = f"scontrol: {done.stderr.strip()}" if done.returncode else f"job {job} is in the queue again"
    except OSError as error:
        told = f"job {job} could not be put into the queue again: {error}"
    print(f"hookflat: {told}", file=sys.stderr)
