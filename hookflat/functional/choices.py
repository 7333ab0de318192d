"""What a threat and its attack may be told to be; apart, as recipes are checked before torch is loaded."""

from typing import Literal

Norm = Literal["Linf", "L2", "L1"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]


def check_radius(norm: Norm, eps: float) -> None:
    """Raises ValueError for an L-infinity radius above 1, which is most likely one of 255 grey levels."""
    if norm == "Linf" and eps > 1:
        raise ValueError(f"eps: should be at most 1 in the L-infinity norm, as images are in [0, 1], not {eps:g}")
