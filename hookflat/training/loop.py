"""The training loop. All that varies between methods is a hook call; `hookspecs.py` says what each one is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from hookflat.errors import TrainingFailed
from hookflat.functional.data import Batch
from hookflat.training import checkpoints
from hookflat.training.epochs import end_epoch
from hookflat.training.first_step import watched
from hookflat.training.run import Run
from hookflat.training.stopping import stop_if_asked

CHECK_EVERY = 25
"""Steps between looks at whether all values were finite: looking makes a GPU wait."""


def train(run: Run, max_steps: int | None = None, look: Callable[[Tensor], None] | None = None) -> bool:
    """Train to the end, from wherever `run` stands; whether it got there, or only to step `max_steps`.

    `look`: given the loss of each step.
    """

    def over() -> bool:
        return max_steps is not None and max_steps <= run.step < run.total_steps

    if over():
        return False
    first = True
    while run.epoch < run.epochs:
        for batch in run.batches():
            with watched(run) if first else nullcontext():  # wrong results are told at once
                loss = step(run, batch)
            first = False
            if look:
                look(loss)
            run.console.stepped(run.step)
            if run.step % CHECK_EVERY == 0 or run.device.type == "cpu":
                run.check()
            if save := run.step % run.recipe.run.checkpoint_steps == 0 or run.step == max_steps:
                checkpoints.save(run)
            stop_if_asked(run, saved=save)
            if over():
                return False
        line = end_epoch(run)
        run.console.epoch(run.epoch, run.epochs, line)
        checkpoints.save(run)
        stop_if_asked(run, saved=True, together=True)
    return True


def step(run: Run, batch: Batch) -> Tensor:
    """One training step; its loss."""
    hook, finite = run.hook, run.finite
    run.begin()

    hook.transform_batch(run=run, batch=batch)  # augmentation, label noise: all, in recipe order
    finite.see("transform_batch", batch.x)

    crafted = []
    for _, part in run.parts(batch):  # the whole batch, unless [run] accumulation says otherwise
        objective = hook.attack_objective(run=run, batch=part)  # what to maximise: the first answer
        crafted.append(hook.craft(run=run, batch=part, objective=objective))  # the inner maximisation: [attack]
    x_adv = torch.cat(crafted) if len(crafted) > 1 else crafted[0]
    run.crafted(batch, x_adv)

    loss = hook.gradients(run=run, batch=batch, x_adv=x_adv)  # loss and backward; weight perturbations wrap it
    if loss is None:
        raise TrainingFailed("hook 'gradients' gave no loss: does a wrapper lack `return (yield)`?")

    run.update(loss)  # optimizer and schedule
    if not run.mid_cycle:
        hook.after_step(run=run)  # weight clipping, averaging
    return loss
