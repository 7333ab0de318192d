"""What a user did wrong, and what went wrong in training: one clear message each, no traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: exit code 2. The message says what, where, and what to do instead."""


class TrainingFailed(RuntimeError):  # noqa: N818
    """The training cannot go on: exit code 3. The last good checkpoint is kept."""
