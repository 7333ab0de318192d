"""How work on a run ends before its end: in one message that says what is kept and what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import torch
from torch.distributed import DistError

from hookflat.errors import Stopped, TrainingFailed, UserError
from hookflat.records.disk import refused
from hookflat.training.run import Run

_LOST = re.compile(r"gloo/transport|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


@contextmanager
def ending(run: Run) -> Generator[None]:
    """Inside, what a disk, another process or a plugin does to the work is raised as TrainingFailed.

    Of several processes, one tells the user.
    """
    try:
        try:
            yield
        finally:
            run.close()
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, Stopped):
            stopped.said = True
        if run.main and _speaks(run):
            after = f" after step {run.step}" if run.step else ""
            run.console.say(f"stopped{after}{_goes_on(run)}")
        raise
    except (UserError, TrainingFailed) as error:
        error.said = not _speaks(run) and not (run.main and isinstance(error, UserError))
        raise
    except Exception as error:
        if (told := _told(run, error)) is None:
            raise
        told.said = not _speaks(run)
        raise told from error


def _speaks(run: Run) -> bool:
    """The main process, unless it is the one that was lost."""
    if not run.main:
        time.sleep(1)
    return run.processes == 1 or run.folder.first_to_say()


def _told(run: Run, error: Exception) -> TrainingFailed | None:
    """A failure in the words for it; None for a bug of hookflat's."""
    if told := refused(error, run.folder.path) or _of_the_machine(run, error):
        return TrainingFailed(told + _goes_on(run))
    if blamed := next((told for hooks in (run.hooks, *run.measures.values()) if (told := hooks.blame(error))), None):
        return blamed
    if told := refused(error, run.folder.path, inside=True):
        return TrainingFailed(told + _goes_on(run))
    if "wrap_controller" in str(error):  # pluggy's word for a wrapper that does not yield exactly once
        return TrainingFailed(f"a hook wrapper must yield exactly once: {error}")
    return None


def _of_the_machine(run: Run, error: Exception) -> str | None:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU has no memory left ({str(error).strip().splitlines()[0]}). It takes less with "
            "HOOKFLAT_CUDA_GRAPHS=0 in the environment, with run.accumulation = 2 in a step, with a smaller "
            "eval.batch_size in a measure"
        )
    if run.processes > 1 and (isinstance(error, DistError) or _LOST.search(str(error))):
        return (
            f"another of the {run.processes} processes ended, killed or without memory perhaps (its own output may say "
            "more)"
        )
    return None


def _goes_on(run: Run) -> str:
    """From where the same command goes on; "" of a trial, which leaves nothing to go on from."""
    if run.trial:
        return ""
    where = " from the beginning: nothing is kept yet"
    with suppress(OSError):
        if checkpoint := run.folder.last_checkpoint():
            where = f" from {checkpoint}"
        elif run.folder.unfinished.exists():
            where = " with what is not measured yet"
    return f"; the same command goes on{where}"
