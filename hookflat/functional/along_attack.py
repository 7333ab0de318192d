"""Flatness along an attack, from an image to its adversarial example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from hookflat.functional import seeds
from hookflat.functional.attack_view import attack_view
from hookflat.functional.attacks import ascent
from hookflat.functional.brackets import measuring
from hookflat.functional.curvature import relative_flatness_of
from hookflat.functional.examples import Loader, set_of
from hookflat.functional.losses import cross_entropy
from hookflat.functional.neighborhood import each_on_sphere, layers, moved
from hookflat.functional.robustness import Scored, columns
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Values, Work

FROM_THE_IMAGE = Attack(steps=10, start="zero")


@dataclass(frozen=True, eq=False, repr=False)
class AlongAttack(Shown):
    """At the image and after every step of the attack, for every example: (steps + 1, N) each, on the CPU.

    `relative`: relative flatness of the penultimate layer; `rise`: the mean loss in weight-perturbed networks minus the
    loss, at the same point; `loss`, `confidence` (the largest probability), `wrong` (bool): of the network.
    """

    relative: Tensor
    rise: Tensor
    loss: Tensor
    confidence: Tensor
    wrong: Tensor


def flatness_along_attack(
    model: nn.Module,
    loader: Loader,
    *,
    xi: float = 0.5,
    samples: int = 5,
    attack: Attack = FROM_THE_IMAGE,
    seed: int = 0,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> AlongAttack:
    """How flat the loss is at every point of PGD's path, which begins at the image unless `start` says otherwise.

    Relative flatness as in `relative_flatness`, example by example (Walter et al. 2024, "The Uncanny Valley", arXiv
    2405.16918; its code has tr(H) ||w|| in place of the sum over rows, the closed form is that of Walter et al. 2025,
    arXiv 2510.14231); and average-case flatness with the points held fixed, over `samples` perturbations on the sphere
    of relative radius `xi`. One restart. Raises ValueError for a network that does not end in a linear layer.
    """
    work, attack = work or Work(), attack.but(**options)
    weights = list(layers(model).values())

    def measured(x: Tensor, y: Tensor, keys: Tensor, rows: int) -> Values:
        start = attack.threat.ball(x).start(attack.start, keys, seeds.derive_seed(seed, "start", 0))
        view = attack_view(model, attack.precision)
        path = [x_adv for x_adv, _ in ascent(view, Scored(y), attack.threat.ball(x), start, attack, score_last=False)]
        work.passed(len(y) * (attack.steps + (1 + samples) * len(path)))
        with torch.no_grad():
            flat, said = zip(*(relative_flatness_of(model, point) for point in path), strict=True)
            relative, logits = torch.stack(flat), torch.stack(said)
            loss = torch.stack([cross_entropy(z, y) for z in logits]).double()
            perturbed = torch.zeros_like(loss)
            for sample in range(samples):
                nu = each_on_sphere(weights, xi, seeds.generator(seed, "flatness_along_attack", sample))
                with moved(weights, nu):
                    perturbed += torch.stack([cross_entropy(model(point), y) for point in path]).double() / samples
        confidence, answer = logits.double().softmax(dim=2).max(dim=2)
        columns = {"relative": relative, "rise": perturbed - loss, "loss": loss, "confidence": confidence}
        return {
            f"{k} {t}": row for k, values in (columns | {"wrong": answer != y}).items() for t, row in enumerate(values)
        }

    steps = range(attack.steps + 1)
    kinds = {name: torch.zeros(0) for name in ("relative", "rise", "loss", "confidence")}
    kinds["wrong"] = torch.zeros(0, dtype=torch.bool)
    with measuring(model):
        empty = {f"{name} {t}": none for name, none in kinds.items() for t in steps}
        every = columns(set_of(loader, model), measured, work, empty)
    return AlongAttack(**{name: torch.stack([every[f"{name} {t}"] for t in steps]) for name in kinds})
