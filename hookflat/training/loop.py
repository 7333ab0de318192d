"""The training loop. All that varies between methods is a hook call; `hookspecs.py` says what each one is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from hookflat.errors import TrainingFailed
from hookflat.training.first_step import watched

if TYPE_CHECKING:
    from hookflat.functional.data import Batch
    from hookflat.training.console import Console
    from hookflat.training.run import Run


def train(run: Run, console: Console) -> None:
    """Train to the end, from wherever `run` stands."""
    first = True
    while run.epoch < run.epochs:
        for batch in run.batches():
            with watched(run) if first else nullcontext():  # results of the wrong shape or range are told at once
                step(run, batch)
            first = False
            console.stepped(run)
            if run.step % run.recipe.run.checkpoint_steps == 0:
                run.save()
        console.epoch(run, run.end_epoch())
        run.save()


def step(run: Run, batch: Batch) -> None:
    """One training step."""
    hook, watch = run.hook, run.watch
    watch.step = run.step

    hook.transform_batch(run=run, batch=batch)  # augmentation, label noise: all, in recipe order
    watch.see("transform_batch", batch.x)

    objective = hook.attack_objective(run=run, batch=batch)  # what to maximise: the first answer
    x_adv = hook.craft(run=run, batch=batch, objective=objective)  # the inner maximisation: the [attack] slot
    watch.see("craft", x_adv)

    loss = hook.gradients(run=run, batch=batch, x_adv=x_adv)  # loss and backward; weight perturbations wrap it
    if loss is None:
        raise TrainingFailed("hook 'gradients' gave no loss: does a wrapper lack `return (yield)`?")

    run.update(loss)  # optimizer and schedule
    if not run.mid_cycle:
        hook.after_step(run=run)  # weight clipping, averaging
