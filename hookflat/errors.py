"""What a user did wrong, what went wrong in training, and what ended it: one clear message each, no traceback."""

from __future__ import annotations

import dis
import signal
from pathlib import Path


class UserError(ValueError):
    """Something the user can put right: exit code 2. The message says what, where, and what to do instead.

    `said`: whether another process of the same launch tells the user; None where nobody knows.
    """

    said: bool | None = None


class TrainingFailed(RuntimeError):  # noqa: N818
    """The training cannot go on: exit code 3. The last good checkpoint is kept. `said`: as above."""

    said: bool | None = None


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: exit code 128 and the signal's number. `said`: whether the user was told what is kept."""

    said = False

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def thrown(error: BaseException) -> bool:
    """Whether code of a plugin's raised it; not so a KeyboardInterrupt that came with a key, between two instructions.

    A SystemExit or KeyboardInterrupt that hookflat raises is its own answer to a signal.
    """
    if isinstance(error, Exception):
        return True
    if isinstance(error, Stopped):
        return False
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None or Path(innermost.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
        return False
    at = innermost.tb_frame.f_code.co_code[innermost.tb_lasti]
    return isinstance(error, SystemExit) or dis.opname[at] == "RAISE_VARARGS"
