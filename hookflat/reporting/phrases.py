"""Numbers and lists as a text says them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hookflat.reporting.statistics import Estimate


def sentence(text: str) -> str:
    """With a capital and a full stop; "" stays empty."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def estimate(number: Estimate) -> str:
    """ "0.81 [0.62, 0.93]"."""
    if math.isnan(number.value):
        return "undefined"
    if math.isnan(number.low):
        return minus(f"{number.value:.2f}")
    return minus(f"{number.value:.2f} [{number.low:.2f}, {number.high:.2f}]")


def minus(text: str) -> str:
    """With a minus for every hyphen."""
    return text.replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
