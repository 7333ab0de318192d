"""The training loop. All that varies between methods is a hook call; `hookspecs.py` says what each one is."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor

from hookflat.errors import TrainingFailed
from hookflat.functional.data import Batch
from hookflat.training import checkpoints
from hookflat.training.epochs import end_epoch
from hookflat.training.first_step import watched
from hookflat.training.run import Run
from hookflat.training.stopping import stop_if_asked

CHECK_EVERY = 25
"""Steps between looks at whether all values were finite: looking makes the device wait."""


def train(run: Run) -> None:
    """Train to the end, from wherever `run` stands."""
    first = True
    while run.epoch < run.epochs:
        for batch in run.batches():
            with watched(run.network, run.hooks) if first else nullcontext():  # wrong results are told at once
                step(run, batch)
            first = False
            run.console.stepped(run.step)
            if run.step % CHECK_EVERY == 0:
                run.check()
            if save := run.step % run.recipe.run.checkpoint_steps == 0:
                checkpoints.save(run)
            stop_if_asked(run, saved=save)
        line = end_epoch(run)
        run.console.epoch(run.epoch, run.epochs, line)
        checkpoints.save(run)
        stop_if_asked(run, saved=True, together=True)


def step(run: Run, batch: Batch) -> Tensor:
    """One training step; its loss."""
    hook, finite = run.hook, run.finite
    finite.step = run.step

    hook.transform_batch(run=run, batch=batch)  # augmentation, label noise: all, in recipe order
    finite.see("transform_batch", batch.x)

    objective = hook.attack_objective(run=run, batch=batch)  # what to maximise: the first answer
    x_adv = hook.craft(run=run, batch=batch, objective=objective)  # the inner maximisation: the [attack] slot
    finite.see("craft", x_adv)

    loss = hook.gradients(run=run, batch=batch, x_adv=x_adv)  # loss and backward; weight perturbations wrap it
    if loss is None:
        raise TrainingFailed("hook 'gradients' gave no loss: does a wrapper lack `return (yield)`?")

    run.update(loss)  # optimizer and schedule
    if not run.mid_cycle:
        hook.after_step(run=run)  # weight clipping, averaging
    return loss
