"""AutoAttack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hookflat import Quantity, Subject, autoattack, autoattacks, hookimpl

Version = Literal["standard", "plus", "rand", "custom"]
_PASSES = {"apgd-ce": 100, "apgd-dlr": 100, "fab": 300, "apgd-t": 900, "fab-t": 2500, "square": 3000}
"""Of an example, roughly; the robust half meets all attacks."""


@dataclass(eq=False)
class AutoAttackMeasure:
    """RErr under AutoAttack, by the package pyautoattack, and the share of examples that each of its attacks broke.

    With fewer than ten classes the targeted attacks try all the others; with two or three FAB runs untargeted and
    APGD-T is left out. The log is kept, and a table of what broke each example.
    """

    paper: ClassVar[str] = "Croce and Hein 2020, arXiv 2003.01690"

    version: Annotated[Version, Field(description="custom: the attacks below, one restart each")] = "standard"
    attacks: Annotated[list[str] | None, Field(description="apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t")] = None
    batch_size: Annotated[int, Field(ge=1, description="examples at a time; random starts depend on it")] = 250

    def __post_init__(self) -> None:
        if (self.version == "custom") != (self.attacks is not None):
            raise ValueError('attacks goes with version = "custom", and only with it')
        known = autoattacks("plus", 10)
        for attack in self.attacks or ():
            if attack not in known:
                raise ValueError(f"attacks: there is no {attack!r}, only {', '.join(known)}")

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        result = autoattack(
            subject.model,
            subject.examples,
            eps=subject.threat.eps,
            norm=subject.threat.norm,
            version=self.version,
            attacks=self.attacks,
            batch_size=self.batch_size,
            seed=subject.seed,
            clean=subject.robust(0, 0),
            work=subject.work("autoattack"),
        )
        names = ["robust", "wrong without an attack", *result.broken]
        subject.keep("autoattack", f"broken_by: {dict(enumerate(names, start=-1))}\n{result.log}")
        subject.keep("autoattack_per_example", {"broken_by": result.broken_by, "wrong": result.broken_by >= 0})
        shares = {f"broken_by_{attack.replace('-', '_')}": share for attack, share in result.broken.items()}
        return {"rerr_autoattack": result.error} | shares

    def numbers(self) -> dict[str, Quantity]:
        """What they are; a choice of attacks is not called AutoAttack."""
        chosen = ", ".join(a.upper().replace("SQUARE", "Square") for a in self.attacks or ()) or "AutoAttack"
        both: dict[str, Any] = {"lower_is_better": True, "predictor": False}
        error = Quantity(f"RErr ({chosen})", "share", role="RErr", rank=1, headline=True, **both)
        return {"rerr_autoattack": error} | {
            f"broken_by_{attack.replace('-', '_')}": Quantity(f"broken by {attack}", "share", predictor=False)
            for attack in autoattacks("plus", 10)
        }

    def searches(self) -> list[tuple[int, int]]:
        return [(0, 0)]

    def passes(self) -> int:
        return sum(_PASSES[a] for a in autoattacks(self.version, 10, self.attacks)) // 2
