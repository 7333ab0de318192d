"""RErr by PGD alone: an example is attacked until it is broken, and not further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from hookflat.functional.brackets import measuring
from hookflat.functional.broadcasting import per_image
from hookflat.functional.examples import Loader, check_order, set_of
from hookflat.functional.robustness import (
    PGD20X10,
    RobustLoss,
    Scored,
    clean_scores,
    mean,
    scores,
    searched_views,
    start_of_restart,
)
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, AttackOptions
from hookflat.functional.work import Work


@dataclass(frozen=True, eq=False, repr=False)
class RobustError(Shown):
    """RErr by PGD and the clean error, in [0, 1]; `wrong`, `clean_wrong`: (N,) bool, each example's."""

    error: float
    clean_error: float
    wrong: Tensor
    clean_wrong: Tensor


def robust_error(
    model: nn.Module,
    loader: Loader,
    *,
    attack: Attack = PGD20X10,
    seed: int = 0,
    clean: RobustLoss | None = None,
    work: Work | None = None,
    **options: Unpack[AttackOptions],
) -> RobustError:
    """The RErr of `robust_loss`, in fewer passes: what is broken gets no more steps and restarts.

    A restart also ends where it comes back to a point: signed steps of one length, cut off by the ball, often go round
    in circles after some ten of them, and every point of the circle was seen (Doldo et al. 2025, arXiv 2503.19347). The
    points are the same; the search packs what is still robust into full batches, and `model` itself confirms every
    adversarial example. This process's share of the examples is held in memory. `clean`: as in `robust_loss`.
    """
    work, attack = work or Work(), attack.but(**options)
    if clean is not None:
        check_order(loader)
    with measuring(model):
        examples = set_of(loader, model)
        flags = work.once(
            "broken", lambda: _Breaking(model, list(examples), attack, seed, work, examples.batch_size).result(clean)
        )
    wrong, clean_wrong = examples.gather(flags["wrong"]), examples.gather(flags["clean_wrong"])
    return RobustError(mean(wrong), mean(clean_wrong), wrong, clean_wrong)


class _Breaking:
    """The search for one adversarial example each, on a frozen network."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[tuple[Tensor, Tensor, Tensor]],
        attack: Attack,
        seed: int,
        work: Work,
        batch_size: int,
    ) -> None:
        self.model, self.attack, self.seed, self.work = model, attack, seed, work
        self.rows = max([batch_size, *(len(y) for _, y, _ in batches)]) if batches else 0
        if batches:
            self.x, self.y, self.keys = (torch.cat(column) for column in zip(*batches, strict=True))

    def result(self, clean: RobustLoss | None) -> dict[str, Tensor]:
        """Which examples are misclassified clean, and which clean or under attack."""
        if not self.rows:  # fewer examples than processes
            return {"wrong": torch.zeros(0, dtype=torch.bool), "clean_wrong": torch.zeros(0, dtype=torch.bool)}
        batches = zip(*(t.split(self.rows) for t in (self.x, self.y, self.keys)), strict=True)
        clean_wrong = torch.cat([clean_scores(self.model, *batch, clean)[1] for batch in batches])
        wrong, doubted = clean_wrong, torch.zeros_like(clean_wrong)
        for view in searched_views(self.model, self.attack):
            broken, doubted = self.search(view, ~wrong)
            wrong = wrong | broken
        if doubted.any():  # the view and the network disagree about a label: no view, then
            wrong = wrong | self.search(self.model, doubted)[0]
        return {"wrong": wrong, "clean_wrong": clean_wrong}

    def search(self, net: nn.Module, among: Tensor) -> tuple[Tensor, Tensor]:
        """Attack `among` ((N,) bool) through `net`: which are broken, and of which only `net` said so."""
        rows, attack = self.rows, self.attack
        broken, closed = torch.zeros_like(among), torch.zeros_like(among)
        examples = among.nonzero().flatten()
        queue = examples.repeat(attack.restarts)  # every example's first restart, then every example's second, ...
        restarts = torch.arange(attack.restarts, device=queue.device).repeat_interleave(len(examples))
        # what is under attack, where it is, after how many steps
        index, x_adv, steps = queue[:0], self.x[:0], queue[:0]
        landmark, circling = x_adv, closed[:0]  # where each was after 0, 1, 2, 4, 8, ... steps, and whether it is again
        asked, candidates = queue[:0], self.x[:0]  # what the network itself has to judge
        while True:
            going, waiting = ~(closed[index] | circling), ~closed[queue]
            index, x_adv, steps, landmark = index[going], x_adv[going], steps[going], landmark[going]
            queue, restarts = queue[waiting], restarts[waiting]
            if free := rows - len(index):
                index = torch.cat([index, queue[:free]])
                starts = self.starts(queue[:free], restarts[:free])
                x_adv, landmark = torch.cat([x_adv, starts]), torch.cat([landmark, starts])
                steps = torch.cat([steps, torch.zeros_like(queue[:free])])
                queue, restarts = queue[free:], restarts[free:]
            over = steps == attack.steps
            asked, candidates = torch.cat([asked, index[over]]), torch.cat([candidates, x_adv[over]])
            index, x_adv, steps, landmark = index[~over], x_adv[~over], steps[~over], landmark[~over]
            circling = torch.zeros_like(index, dtype=torch.bool)
            while len(asked) >= rows or (len(asked) and not len(index)):
                judged, asked = asked[:rows], asked[rows:]
                wrong = scores(self.model, candidates[:rows], self.y[judged])[1]
                candidates = candidates[rows:]
                broken[judged[wrong]] = closed[judged[wrong]] = True
            if not len(index):
                if not len(queue):
                    return broken, closed & ~broken
                continue
            objective, ball = Scored(self.y[index]), attack.threat.ball(self.x[index])
            with torch.enable_grad():
                x_adv.requires_grad_()
                (gradient,) = torch.autograd.grad(objective(net, x_adv).sum(), x_adv)
            self.work.passed(len(index))
            x_adv, wrong = x_adv.detach(), objective.wrong
            asked, candidates = torch.cat([asked, index[wrong]]), torch.cat([candidates, x_adv[wrong]])
            closed[index[wrong]] = True
            x_adv, steps = ball.project(x_adv + attack.step_size * ball.ascent(gradient, x_adv)), steps + 1
            circling = (x_adv == landmark).flatten(1).all(dim=1)
            due = per_image(steps & (steps - 1) == 0, x_adv)
            landmark = torch.where(due, x_adv, landmark)

    def starts(self, index: Tensor, restarts: Tensor) -> Tensor:
        """Where the restarts of some examples begin, in order; `restarts` is sorted."""
        parts = [self.x[:0]]
        for restart in restarts.unique_consecutive().tolist():
            of_it = index[restarts == restart]
            parts.append(start_of_restart(self.attack, self.x[of_it], self.keys[of_it], self.seed, restart))
        return torch.cat(parts)
