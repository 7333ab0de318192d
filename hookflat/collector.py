"""Python's garbage collector at both ends of a process.

What is imported stays, so a collection finds nothing there: looking for it took a sixth of the time until a run's first
step, and most of the time from a command's last line to its end.
"""

from __future__ import annotations

import gc
import re
import sys

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
    """The process ends, and all memory with it: Python's last collections need not look at what is there.

    But where triton counts its objects at the end, from 3.9 on, and calls in a page of lines leaked what they leave.
    """
    version = getattr(sys.modules.get("triton"), "__version__", "0")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (3, 9):
        gc.freeze()
