"""From a recipe to a finished run folder."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hookflat import collector
from hookflat.errors import UserError
from hookflat.functional.brackets import global_state_restored
from hookflat.reading.weights import load_into
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.recipe import Recipe
from hookflat.records.results import Results
from hookflat.training import checkpoints, loop
from hookflat.training.data_record import check_same_data, data_record
from hookflat.training.ending import ending
from hookflat.training.epochs import finish
from hookflat.training.heading import say_training
from hookflat.training.launch import check_launch
from hookflat.training.measuring import quantities
from hookflat.training.run import Run
from hookflat.training.stopping import listening
from hookflat.training.trackers import Trackers
from hookflat.training.trial import FirstLook


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, and what was measured."""

    folder: Path
    results: Results


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    overlays: Iterable[str | Path] = (),
    overrides: Iterable[str] | dict[str, Any] = (),
    plugins: Iterable[str | Path | type] = (),
    folder: str | Path | None = None,
    quiet: bool = True,
) -> FinishedRun:
    """Train a recipe and measure the result; an existing folder of the same recipe is resumed.

    `overrides`: {"loss.beta": 3} or "loss.beta=3" strings. `plugins`: Python files with plugin classes, or
    classes (a `Recipe` has its own). `folder`: instead of the recipe's. Raises `hookflat.UserError` for what the caller
    can put right, `hookflat.TrainingFailed` when the training cannot go on, and KeyboardInterrupt when a signal stopped
    it. The global random generators and torch's number of threads are left as found.
    """
    if not isinstance(recipe, Recipe):
        catalogue = Catalogue([p if isinstance(p, type) else Path(p) for p in plugins])
        recipe = load_recipe(recipe, overlays=overlays, overrides=overrides, catalogue=catalogue)
    with _begun(recipe, folder, quiet=quiet) as begun:
        results = _run(begun)
        assert results is not None
    return FinishedRun(begun.folder.path, results)


def first_steps(recipe: Recipe, steps: int, *, folder: Path | None = None) -> None:
    """The training of a recipe up to step `steps`, a line for each, and a checkpoint from which `run` goes on."""
    with _begun(recipe, folder, quiet=False) as begun:
        _run(begun, steps)


@contextmanager
def _begun(recipe: Recipe, folder: str | Path | None, *, quiet: bool) -> Generator[Run]:
    """A run that holds its folder inside, nothing of it built."""
    check_launch(recipe.run)
    with global_state_restored():
        begun = Run(recipe, Path(folder) if folder else recipe.folder, quiet=quiet)
        with ending(begun), begun.folder.held():
            yield begun


def _run(run: Run, max_steps: int | None = None) -> Results | None:
    """None where `max_steps` ended it."""
    recipe, path, console = run.recipe, run.folder.path, run.console
    run.accelerator.wait_for_everyone()  # the main process holds the folder
    changed = run.folder.prepare(recipe)
    run.accelerator.wait_for_everyone()
    if done := run.folder.whole_results(console.say):
        since = f" ({'; '.join(changed)} since)" if changed else ""
        console.say(f"{path} is complete already{since}; its results:")
        console.results(done)
        if run.folder.undrawn.exists():
            run.build_network()
            load_into(run.network, run.folder.load_network("last")[0], f"{path}: the network 'last'")
            run.epoch = run.epochs
            draw(run)
        return done
    run.build()
    if run.main:  # to hash all images takes a while
        about = data_record(run.data)
        check_same_data(run.folder, about)
        run.folder.save_data(about)
    resumed = checkpoints.resume(run)
    console.quantities = quantities(recipe)
    say_training(run, resumed=resumed)
    if changed:
        console.say(f"this is other code than it had before: {'; '.join(changed)}")
    console.training(run.total_steps, run.step, run.measurements.tally)
    run.trackers = Trackers(recipe, run.folder, run.accelerator, console.quantities)
    collector.as_usual()
    with listening(run):
        trained = loop.train(run, max_steps, FirstLook(run) if max_steps else None)
    if not trained:
        console.say(f"stopped after step {run.step} of {run.total_steps}; without --max-steps the command goes on")
        return None
    results = finish(run)
    if run.main:
        run.folder.undrawn.touch()
    run.folder.save_results(results)
    draw(run)
    run.accelerator.wait_for_everyone()
    run.close()
    console.results(results)
    console.say(f"{console.took()}, everything is in {path}")
    return results


def network_of(recipe: Recipe, folder: str | Path, which: Literal["last", "best"] = "last") -> nn.Module:
    """A network that a complete run folder saved, on the run's device, in training mode.

    The last where the run kept no best. Raises UserError for weights that are not of that network, or not finite.
    """
    run = Run(recipe, Path(folder))
    with global_state_restored():
        run.build_network()
    kept = which if run.folder.network("last") and run.folder.network(which) else "last"
    load_into(run.network, run.folder.load_network(kept)[0], f"{folder}: the network {kept!r}")
    return run.network


def teacher_of(run: Run, folder: str, option: str, which: Literal["last", "best"] = "last") -> nn.Module:
    """A network of a complete run folder, in evaluation mode and frozen, for `run` to learn from.

    `which`: the last, or the best where the run kept one, as early stopping does.
    Raises UserError that names `option` where there is no such run, or where it knows other images or classes.
    """
    if not Path(folder, "recipe.toml").is_file():
        raise UserError(f"{option} = {folder!r}: no run there; hookflat run makes one (hookflat run standard, at ...)")
    recipe = load_recipe(Path(folder, "recipe.toml"), catalogue=run.recipe.catalogue)
    network = network_of(recipe, folder, which).to(run.device).eval().requires_grad_(False)
    try:
        with torch.no_grad():
            classes = network(torch.zeros(1, *run.data.train.shape, device=run.device)).shape[1]
    except RuntimeError as error:
        raise UserError(f"{option} = {folder!r}: that network takes no images of {run.data.train.shape}") from error
    if classes != run.data.num_classes:
        raise UserError(f"{option} = {folder!r}: that network knows {classes} classes, not {run.data.num_classes}")
    return network


def draw(run: Run) -> None:
    """Figures of every plugin that draws, as PNG and SVG in `figures/`."""
    if not run.main:
        return
    drawn = run.hook.draw(run=run, records=run.folder.records())
    for figures in drawn:
        run.folder.draw(figures)
        if run.trackers:
            run.trackers.draw(figures, run.step)
    run.folder.undrawn.unlink(missing_ok=True)
