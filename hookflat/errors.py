"""What a user did wrong, what went wrong in training, and what ended it: one clear message each, no traceback."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """Something the user can put right: exit code 2. The message says what, where, and what to do instead.

    `said`: whether another process of the same launch tells the user; None where nobody knows.
    """

    said: bool | None = None


class TrainingFailed(RuntimeError):  # noqa: N818
    """The training cannot go on: exit code 3. The last good checkpoint is kept. `said`: as above."""

    said: bool | None = None


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: exit code 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
