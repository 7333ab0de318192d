"""What a measured number is: its measure declares it once, and tables, report, console and trackers read it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hookflat.functional.choices import check_choice

Unit = Literal["share", "loss", "count", "number", "flag"]
Role = Literal[
    "clean error",
    "RErr",
    "RLoss",
    "RLoss, correct",
    "RLoss, incorrect",
    "average flatness",
    "worst flatness",
    "confidence",
]
"""What a number is in the paper's table and figures, and in the ranking of measures."""


@dataclass(frozen=True)
class Quantity:
    """A number that a measure returns.

    `unit`: a share in [0, 1] is shown in %; a flag is raised (1) or not (0), and its label says what that means.
    `lower_is_better`: None where it is neither good nor bad. `role`: the column of Table 1 that it may fill; of several
    measures the one of the highest `rank` does. `headline`: whether it stands in the line of an epoch, and its gap
    (test minus train) in the final table. `predictor`: whether reports ask how well it goes with RLoss, RErr and their
    gaps; False for losses and errors, which others should predict. Raises ValueError for other units and roles.
    """

    label: str
    unit: Unit = "number"
    lower_is_better: bool | None = None
    role: Role | None = None
    rank: int = 0
    headline: bool = False
    predictor: bool = True

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, Unit)
        if self.role is not None:
            check_choice("role", self.role, Role)

    def text(self, value: float, error: float | None = None) -> str:
        """A value as a table shows it: "12.3 %", "1.234", and small ones with the digits that tell them apart.

        `error`: its standard error, behind it.
        """
        if error is not None:
            return f"{self.text(value)} ± {self.text(error)}"
        if self.unit == "flag":
            return "raised" if value else "no"
        if self.unit == "share":
            return f"{100 * value:.1f} %"
        if self.unit == "count":
            return f"{value:.0f}"
        return f"{value:.3f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def quantity(name: str, declared: Mapping[str, Quantity]) -> Quantity:
    """What is declared of a number, or its name where nothing is."""
    return declared.get(name) or Quantity(name.replace("_", " "))


def of_role(role: Role, declared: Mapping[str, Quantity]) -> list[str]:
    """The names of the numbers that may play a role, the highest rank first."""
    names = [name for name, what in declared.items() if what.role == role]
    return sorted(names, key=lambda name: -declared[name].rank)


def is_error_of(name: str) -> str | None:
    """The number whose standard error `name` is; None where it is none."""
    return name.removesuffix("_stderr") if name.endswith("_stderr") else None
