"""Numbers that others measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from hookflat import Quantity, Share, hookimpl


@dataclass(eq=False)
class External:
    """RErr and clean error of this network as others measured them, with the source, to stand beside our own.

    Nothing is measured: the numbers are the options. Reports show them in a column of their own, and say so where an
    external RErr is the higher one.
    """

    kind: ClassVar[str] = "measure"

    rerr: Annotated[Share | None, Field(description="RErr in [0, 1]")] = None
    clean_error: Annotated[Share | None, Field(description="clean error in [0, 1]")] = None
    source: Annotated[str, Field(description="who measured it, where it is published")] = ""

    def __post_init__(self) -> None:
        if (self.rerr is not None or self.clean_error is not None) and not self.source:
            raise ValueError("source: say who measured it, where it is published")

    @hookimpl
    def measure(self) -> dict[str, float]:
        values = {"external_rerr": self.rerr, "external_clean_error": self.clean_error}
        return {name: value for name, value in values.items() if value is not None}

    def numbers(self) -> dict[str, Quantity]:
        """What they are, and whose."""
        error = Quantity(f"RErr ({self.source})", "share", lower_is_better=True, role="external RErr", predictor=False)
        clean = Quantity(f"clean error ({self.source})", "share", lower_is_better=True, predictor=False)
        return {"external_rerr": error, "external_clean_error": clean}

    def passes(self) -> int:
        return 0
