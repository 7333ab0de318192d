"""What a threat and its attack may be told to be; apart, as recipes are checked before torch is loaded."""

import math
from typing import Any, Literal, get_args

Norm = Literal["Linf", "L2", "L1"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError where `value` is none of a `Literal`'s."""
    if value not in get_args(choices):
        raise ValueError(f"{name}: should be one of {', '.join(map(repr, get_args(choices)))}, not {value!r}")


def check_length(name: str, value: float) -> None:
    """Raises ValueError where `value` is negative, not finite, or no number."""
    if isinstance(value, str | list | tuple):
        raise ValueError(f"{name}: should be one number, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: should be a finite number from 0 on, not {value:g}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError for fewer than `least`."""
    if value < least:
        raise ValueError(f"{name}: should be at least {least}, not {value}")


UNSAID = math.nan
"""A step that follows the radius."""


def step_for(eps: float) -> float:
    """The length of a step where nothing is said: the paper's 0.007 at 8/255, in proportion at other radii."""
    return 0.007 * (eps / (8 / 255)) if eps else 0.007


def check_radius(norm: Norm, eps: float) -> None:
    """Raises ValueError for an L-infinity radius above 1, which is most likely one of 255 grey levels."""
    if norm == "Linf" and eps > 1:
        raise ValueError(f"eps: should be at most 1 in the L-infinity norm, as images are in [0, 1], not {eps:g}")
