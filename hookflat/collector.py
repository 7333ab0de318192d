"""Python's garbage collector at both ends of a process.

What is imported stays, so a collection finds nothing there: looking for it took a sixth of the time until a run's first
step, and most of the time from a command's last line to its end.
"""

from __future__ import annotations

import gc

_PATIENT = 2_000_000
"""New objects before it looks: twice what torch, torch._dynamo and timm make together."""

_usual: list[tuple[int, int, int]] = []


def be_patient() -> None:
    """Leave imports alone, until `as_usual`."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(_PATIENT, *_usual[0][1:])


def as_usual() -> None:
    """Everything is imported: collect as before `be_patient`; nothing where nobody called that."""
    if _usual:
        gc.set_threshold(*_usual.pop())


def leave_the_rest() -> None:
    """The process ends, and all memory with it: Python's last collections need not look at what is there."""
    gc.freeze()
