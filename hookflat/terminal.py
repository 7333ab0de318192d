"""Text on its way to a terminal: names and values come from files of others, and terminals obey control characters."""

from __future__ import annotations

from typing import Any

LONGEST = 80
"""Characters of a value in a message."""


def printable(text: str) -> str:
    """`text` with every control character (but for line breaks and tabs), direction mark and half character spelt out.

    What is left is shown, and never obeyed: an escape becomes the four characters of its code.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def shortened(value: Any) -> str:
    """A value as Python writes it, cut in the middle where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of a thousand levels
        text = f"a {type(value).__name__} too large to write"
    return clipped(text)


def clipped(text: str, longest: int = LONGEST) -> str:
    """A text, cut in the middle where it is long."""
    half = longest // 2 - 3
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def duration(seconds: float) -> str:
    """A time in seconds, from two minutes on in minutes, from three hours on in hours, from two days on in days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86_400:.0f} days"
