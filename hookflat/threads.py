"""CPU threads: how they wait, and how many there may be."""

from __future__ import annotations

import os
import sys
import warnings

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What a user may have set to say how OpenMP's threads wait."""


def wait_passively() -> None:
    """Let the threads of OpenMP sleep while they wait for each other: on shared cores spinning costs many times more.

    OpenMP reads the environment when torch is first imported. Warns where that has happened already. A choice of the
    user's stays.
    """
    if any(name in os.environ for name in _WAITING):
        return
    torch = sys.modules.get("torch")
    if torch is None:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    elif torch.get_num_threads() > 1 and not torch.cuda.is_available():
        warnings.warn(
            "torch was imported before hookflat, so its threads spin while they wait: slow where the cores are shared. "
            "Import hookflat first, or set OMP_WAIT_POLICY=PASSIVE.",
            stacklevel=3,
        )


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit() -> int:
    """The most threads that torch should use: the cores, or less where OMP_NUM_THREADS says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(asked)) if asked.isdigit() and int(asked) else cores()
