"""Faults at the n-th moment: whatever touches files in a folder, and every forward pass, counts as a moment."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree"}
_now = {"act": None, "folder": None}


def _audit(event, arguments):
    """Python's own hook, which cannot be taken off: it sees every file that is opened, renamed or removed."""
    if _now["act"] and (event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITES)):
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).is_relative_to(_now["folder"]):
            _now["act"](f"{event} {os.fsdecode(path)}")


sys.addaudithook(_audit)


class Moments:
    """Calls `act` at the n-th moment, or at the first one that `at(what)` chooses, and counts."""

    def __init__(self, at, act):
        self.at, self.act, self.seen, self.what = at, act, 0, ""

    def __call__(self, what):
        self.seen += 1
        if not self.what and (self.at(what) if callable(self.at) else self.seen == self.at):
            self.what = what
            self.act(what)


@contextmanager
def moments(folder, at, act, *, passes=False):
    """Inside, `act(what)` is called at the moment `at` in `folder`: a number, from 1, or a function that chooses.

    `passes`: they count, too.
    """
    seen = Moments(at, act)
    sync = os.fsync

    def fsync(descriptor):
        seen(f"fsync {descriptor}")
        sync(descriptor)

    def forward(module, _):
        if isinstance(module, nn.Linear):
            seen("forward pass")

    handle = register_module_forward_pre_hook(forward) if passes else None
    _now.update(act=seen, folder=Path(folder))
    os.fsync = fsync
    try:
        yield seen
    finally:
        os.fsync = sync
        _now.update(act=None)
        if handle:
            handle.remove()


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)
