"""RErr where the adversary chooses the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from hookflat import Attack, Data, Norm, Number, Quantity, Subject, Threat, UserError, hookimpl, robust_error

Radius = Annotated[Number | None, Field(ge=0, description="radius in this norm; 0 leaves it out; none: see above")]
FIELD: dict[Norm, float] = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}
"""The radii of the field for 32x32 colour images."""


@dataclass(eq=False)
class MultiNormError:
    """The share of examples that PGD breaks in any of three norms, and in each; whatever norm was trained.

    Where a radius is not said it is the field's for 32x32 colour images, L-infinity 8/255, L2 0.5 and L1 12; other
    images are refused then.
    """

    paper: ClassVar[str] = "Tramèr and Boneh 2019, arXiv 1904.13000; Maini et al. 2020, arXiv 1909.04068"

    linf: Radius = None
    l2: Radius = None
    l1: Radius = None
    alpha: Annotated[Number, Field(gt=0, description="length of a step in units of the radius")] = 0.25
    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    restarts: Annotated[int, Field(ge=1, description="of PGD")] = 5

    def __post_init__(self) -> None:
        if not self.threats():
            raise ValueError("linf, l2 and l1 are all 0: no threat is left")

    def threats(self) -> dict[str, Threat]:
        """By name, those that are not left out."""
        said: dict[Norm, float | None] = {"Linf": self.linf, "L2": self.l2, "L1": self.l1}
        every = {norm: FIELD[norm] if eps is None else eps for norm, eps in said.items()}
        return {norm.lower(): Threat(eps, norm) for norm, eps in every.items() if eps}

    def check(self, data: Data) -> None:
        shape = data.train.shape
        if None in (self.linf, self.l2, self.l1) and shape != (3, 32, 32):
            raise UserError(
                "multi_norm: linf, l2 and l1 have defaults for 3x32x32 images alone, these are "
                f"{'x'.join(map(str, shape))}: set all three (digits: 0.15, 0.35 and 1.2)"
            )

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        wrong = {}
        for name, threat in self.threats().items():
            attack = Attack(threat, self.alpha * threat.eps, self.steps, self.restarts, precision=subject.precision)
            work = subject.work(f"multi norm {name}")
            wrong[name] = robust_error(
                subject.model,
                subject.examples,
                attack=attack,
                seed=subject.seed,
                clean=subject.robust(0, 0),
                work=work,
            ).wrong
        shares = {f"rerr_{name}": flags for name, flags in wrong.items()}
        shares["rerr_any_norm"] = torch.stack(list(wrong.values())).any(dim=0)
        return {name: flags.double().mean().item() for name, flags in shares.items()}

    def numbers(self) -> dict[str, Quantity]:
        """What they are."""
        labels = {"any_norm": "any norm"} | {name: f"{t.norm} {t.eps:.3g}" for name, t in self.threats().items()}
        return {
            f"rerr_{name}": Quantity(f"RErr (PGD, {label})", "share", lower_is_better=True, predictor=False)
            for name, label in labels.items()
        }

    def searches(self) -> list[tuple[int, int]]:
        return [(0, 0)]

    def passes(self) -> int:
        return len(self.threats()) * self.restarts * (self.steps + 1) // 2
