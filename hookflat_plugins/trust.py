"""Signs that RErr is too low."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from hookflat import (
    TRUST_FLAGS,
    Quantity,
    RunFolder,
    Share,
    Subject,
    UserError,
    hookimpl,
    load_recipe,
    network_of,
    trust,
)


@dataclass(eq=False)
class TrustMeasure:
    """Flags that say that RErr may be too low: what the network does to attacks, and what other attacks still break.

    The AutoAttack package's checks (randomised defence, probabilities instead of logits, gradients while it classifies,
    zero gradients, Square beats gradients); RErr at 2 and 4 times the radius, by one step and by four times the steps;
    and by the adversarial examples of a `sibling`, the folder of a run of another seed.
    """

    paper: ClassVar[str] = (
        "Croce and Hein 2020, github.com/fra31/auto-attack, flags_doc.md; Athalye et al. 2018, arXiv 1802.00420; "
        "Carlini et al. 2019, arXiv 1902.06705"
    )

    steps: Annotated[int, Field(ge=1, description="of PGD")] = 20
    queries: Annotated[int, Field(ge=0, description="of Square; 0 leaves it out")] = 500
    sibling: Annotated[str, Field(description="folder of a run; none leaves transfer out")] = ""
    tolerance: Annotated[Share, Field(description="of examples that is no sign")] = 0.02
    surviving: Annotated[Share, Field(description="of those right at eps, how many may be at 4 eps")] = 0.5

    @hookimpl
    def measure(self, subject: Subject) -> dict[str, float]:
        result = trust(
            subject.model,
            subject.examples,
            attack=subject.attack(self.steps),
            queries=self.queries,
            sibling=self._sibling(subject),
            tolerance=self.tolerance,
            surviving=self.surviving,
            seed=subject.seed,
            work=subject.work("trust"),
        )
        values = {f"trust_{name}": float(raised) for name, raised in result.raised.items()}
        values["rerr_one_start"] = result.error
        values |= {"rerr_single_step": result.error_single_step, "rerr_four_times_the_steps": result.error_steps}
        values |= {"rerr_2eps": result.error_radius[0], "rerr_4eps": result.error_radius[1]}
        values |= {"zero_gradients": result.zero_gradients, "broken_by_square_alone": result.square}
        values["rerr_transfer"] = result.error_transfer
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _sibling(self, subject: Subject) -> Any:
        if not self.sibling:
            return None
        folder = Path(self.sibling)
        if not RunFolder(folder).is_run:
            raise UserError(f"trust.sibling: {folder} is not the folder of a run")
        sibling = network_of(load_recipe(RunFolder(folder).read_recipe()), folder)
        own, other = (dict(net.named_parameters()) for net in (subject.model, sibling))
        device = next((p.device for p in own.values()), torch.device("cpu"))
        sibling = sibling.to(device)
        if own.keys() == other.keys() and all(torch.equal(own[name], p.to(device)) for name, p in other.items()):
            raise UserError(f"trust.sibling: {folder} has the weights that are measured: take the run of another seed")
        return sibling

    def numbers(self) -> dict[str, Quantity]:
        """What they are: a flag's label says what it means that it is raised."""
        both: dict[str, Any] = {"lower_is_better": True, "predictor": False}
        flags = {f"trust_{name}": Quantity(words, "flag", **both) for name, words in TRUST_FLAGS.items()}
        return flags | {
            "rerr_one_start": Quantity("RErr (PGD, one start)", "share", **both),
            "rerr_single_step": Quantity("RErr (one step of eps)", "share", **both),
            "rerr_four_times_the_steps": Quantity("RErr (PGD, four times the steps)", "share", **both),
            "rerr_2eps": Quantity("RErr (PGD, 2 eps)", "share", **both),
            "rerr_4eps": Quantity("RErr (PGD, 4 eps)", "share", **both),
            "zero_gradients": Quantity("examples with a zero gradient", "share", **both),
            "broken_by_square_alone": Quantity("broken by Square, not by PGD", "share", **both),
            "rerr_transfer": Quantity("RErr (a sibling's adversarial examples)", "share", **both),
        }

    def passes(self) -> int:
        return 5 * self.steps + self.queries // 2
