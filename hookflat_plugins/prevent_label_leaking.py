"""Attacks that do not see the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hookflat import Batch, Objective, Run, cross_entropy, hookimpl

_OWN_OBJECTIVE = "its attack has an objective of its own, which this would replace"


@dataclass(eq=False)
class PreventLabelLeaking:
    """Preventing label leaking: the attack maximises CE(f(x_adv), argmax f(x)); the loss keeps the true label.

    Predictions are the network's in evaluation mode, made once a step (the released code's are in training mode and
    move the running statistics). Beside `pgd_tau` with tau = 0 next to nothing changes: it moves rightly classified
    examples alone.
    """

    paper: ClassVar[str] = "Kurakin et al. 2017, arXiv 1611.01236; protocol of Stutz et al. 2021, section 4"
    kind: ClassVar[str] = "regularizer"
    excludes: ClassVar[dict[str, str]] = {
        "hat": _OWN_OBJECTIVE,
        "ikl": _OWN_OBJECTIVE,
        "lbgat": _OWN_OBJECTIVE,
        "mail": _OWN_OBJECTIVE,
        "trades": _OWN_OBJECTIVE,
        "uat": _OWN_OBJECTIVE,
    }

    @hookimpl
    def attack_objective(self, run: Run, batch: Batch) -> Objective:
        with torch.no_grad():
            predicted = run.attack_model(batch.x).argmax(dim=1)
        return lambda model, x_adv: cross_entropy(model(x_adv), predicted)
