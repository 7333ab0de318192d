"""From a recipe to a finished run folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hookflat.errors import TrainingFailed, UserError
from hookflat.functional.brackets import global_generators_restored
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.recipe import Recipe
from hookflat.records.folder import RunFolder
from hookflat.records.results import Results
from hookflat.training import checkpoints, loop
from hookflat.training.epochs import finish
from hookflat.training.heading import say_training
from hookflat.training.measuring import quantities
from hookflat.training.run import Run
from hookflat.training.trackers import Trackers


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
    classes. `folder`: instead of the recipe's. Raises `hookflat.UserError` for what the caller can put right,
    `hookflat.TrainingFailed` when the training cannot go on. The global random generators are left as found.
    """
    extra = [p if isinstance(p, type) else Path(p) for p in plugins]
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overlays=overlays, overrides=overrides, catalogue=Catalogue(extra))
    with global_generators_restored():
        files = tuple(p for p in extra if isinstance(p, Path))
        run = Run(recipe, Path(folder) if folder else recipe.folder, quiet=quiet)
        with run.folder.held():
            return _run(run, files)


def _run(run: Run, files: tuple[Path, ...]) -> FinishedRun:
    recipe, path, console = run.recipe, run.folder.path, run.console
    try:
        run.folder.prepare(recipe, files)
        run.accelerator.wait_for_everyone()
        if done := run.folder.read_results():
            console.say(f"{path} is complete already; its results:")
            console.results(done)
            if not run.folder.figures.exists():
                draw(run)
            return FinishedRun(path, done)
        run.build()
        resumed = checkpoints.resume(run)
        console.quantities = quantities(recipe)
        say_training(run, resumed=resumed)
        console.training(run.total_steps, run.step)
        run.trackers = Trackers(recipe, run.folder, run.accelerator, console.quantities)
        loop.train(run)
        results = finish(run)
        run.folder.save_results(results)
        draw(run)
        run.accelerator.wait_for_everyone()
    except (UserError, TrainingFailed):
        raise
    except Exception as error:
        if told := run.blame(error):
            raise told from error
        if "wrap_controller" in str(error):  # pluggy's word for a wrapper that does not yield exactly once
            raise TrainingFailed(f"a hook wrapper must yield exactly once: {error}") from error
        raise
    except KeyboardInterrupt:
        console.close()
        console.say(f"stopped after step {run.step}; the same command goes on from the last checkpoint")
        raise
    finally:
        console.close()
        if run.trackers:
            run.trackers.close()
    console.results(results)
    console.say(f"{console.took()}, everything is in {path}")
    return FinishedRun(path, results)


def network_of(recipe: Recipe, folder: str | Path) -> nn.Module:
    """The network that a complete run folder saved, on the run's device, in training mode."""
    run = Run(recipe, Path(folder))
    with global_generators_restored():
        run.build_network()
    run.network.load_state_dict(RunFolder(Path(folder)).load_network("last")[0])
    return run.network


def draw(run: Run) -> None:
    """Figures of every plugin that draws, as PNG files in `figures/`."""
    if not run.main:
        return
    drawn = run.hook.draw(run=run, records=run.folder.records())
    run.folder.figures.mkdir(exist_ok=True)  # says that all is drawn
    for figures in drawn:
        run.folder.draw(figures)
        if run.trackers:
            run.trackers.draw(figures, run.step)
