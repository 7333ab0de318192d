"""Threats and attacks as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

from torch import Tensor

from hookflat.functional.balls import BALLS, Ball, Start
from hookflat.functional.choices import UNSAID, Norm, Precision, check_choice, check_length, check_radius, step_for


@dataclass(frozen=True)
class Threat:
    """An adversary who may move an image by at most `eps` in a norm, inside [0, 1].

    Raises ValueError for an `eps` that is negative or not finite, and for one above 1 in the L-infinity norm.
    """

    eps: float = 8 / 255
    norm: Norm = "Linf"

    def __post_init__(self) -> None:
        check_length("eps", self.eps)
        check_radius(self.norm, self.eps)

    def ball(self, x: Tensor) -> Ball:
        """Around images (n, C, H, W). Raises ValueError for a norm that is none of `Norm`."""
        if self.norm not in BALLS:
            raise ValueError(f"attacks know the norms {', '.join(BALLS)}, not {self.norm}")
        return BALLS[self.norm](x, self.eps)


class AttackOptions(TypedDict, total=False):
    """The values of an `Attack` as keywords: what functions take one by one instead of `attack`."""

    eps: float
    norm: Norm
    step_size: float
    steps: int
    restarts: int
    start: Start
    precision: Precision


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent under a threat: `restarts` starts, `steps` steps of length `step_size` from each.

    `step_size` is the paper's share of the radius where nothing is said: 0.007 at 8/255, 0.223 eps. Without restarts,
    measures take the images as they are. `precision`: of the search's convolutions; "auto" is bf16
    where this device is faster in it. Measures take their numbers from the network in its own precision, and search
    again in fp32 what bf16 did not break. Raises ValueError for negative numbers and for other starts and precisions.
    """

    threat: Threat = field(default_factory=Threat)
    step_size: float = UNSAID
    steps: int = 20
    restarts: int = 1
    start: Start = "uniform_norm"
    precision: Precision = "fp32"
    _follows: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.restarts < 0 or self.steps < 0:
            raise ValueError(f"an attack needs restarts >= 0 and steps >= 0, not {self.restarts} and {self.steps}")
        if not isinstance(self.threat, Threat):
            raise ValueError(f"threat: should be a hookflat.Threat, as Threat(eps), not {self.threat!r}")
        if self.step_size is UNSAID:
            object.__setattr__(self, "_follows", True)
            object.__setattr__(self, "step_size", step_for(self.threat.eps))
        check_length("step_size", self.step_size)
        check_choice("start", self.start, Start)
        check_choice("precision", self.precision, Precision)

    @property
    def passes(self) -> int:
        """Of an example through the network: at every point of every restart."""
        return self.restarts * (self.steps + 1)

    def but(self, **options: Unpack[AttackOptions]) -> Attack:
        """The same with other values; a step that nobody chose follows the radius. Raises TypeError for other names."""
        if unknown := options.keys() - AttackOptions.__annotations__.keys():
            known = ", ".join(AttackOptions.__annotations__)
            raise TypeError(f"an attack has no {', '.join(sorted(unknown))}: its options are {known}")
        given = ({"step_size": UNSAID} if self._follows else {}) | dict(options)
        threat = replace(self.threat, **{name: given.pop(name) for name in ("eps", "norm") if name in given})
        return replace(self, threat=threat, **given)
