"""A flatness at one radius of a neighbourhood of the weights, or at several: what its numbers are called, and are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hookflat.records.quantities import Quantity, Role

if TYPE_CHECKING:
    from hookflat.functional.flatness import Flatness


def radii(xi: list[float] | float) -> list[float]:
    """One radius, or several, as a list."""
    return xi if isinstance(xi, list) else [xi]


def by_radius(name: str, xi: list[float] | float, measured: Sequence[Flatness]) -> dict[str, float]:
    """A measure's numbers and their standard errors: `name`, or `name_xi0.5` and so on where `xi` is a list."""
    values = {}
    for key, flatness in zip(_names(name, xi), measured, strict=True):
        values[key] = flatness.flatness
        if len(flatness.losses) > 1:
            values[f"{key}_stderr"] = flatness.standard_error
    return values


def quantities_by_radius(
    name: str, label: str, xi: list[float] | float, *, role: Role | None = None, paper: float | None = None
) -> dict[str, Quantity]:
    """What the numbers of `by_radius` are: differences of losses, of which lower is flatter.

    With a `role`, one radius stands in the line of an epoch, and of several `paper`, the paper's, comes first.
    """
    several = isinstance(xi, list)
    return {
        key: Quantity(
            f"{label} at xi = {radius:g}" if several else label,
            "loss",
            lower_is_better=True,
            role=role,
            rank=int(radius == paper),
            headline=role is not None and not several,
        )
        for key, radius in zip(_names(name, xi), radii(xi), strict=True)
    }


def _names(name: str, xi: list[float] | float) -> list[str]:
    return [f"{name}_xi{radius:g}" for radius in xi] if isinstance(xi, list) else [name]
