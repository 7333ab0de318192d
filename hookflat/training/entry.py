"""From a recipe to a finished run folder."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hookflat.errors import TrainingFailed, UserError
from hookflat.evaluation.weights import load_weights
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import Recipe, load
from hookflat.training import loop
from hookflat.training.run import Run
from hookflat.training.trackers import Tracking


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, and the content of its eval.json."""

    folder: Path
    results: dict[str, Any]


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    overlays: Iterable[str | Path] = (),
    overrides: Iterable[str] | dict[str, Any] = (),
    plugins: Iterable[str | Path | type] = (),
    folder: str | Path | None = None,
    quiet: bool = True,
) -> Result:
    """Train a recipe and measure the result; an existing folder of the same recipe is resumed.

    `overrides`: {"loss.beta": 3} or "loss.beta=3" strings. `plugins`: Python files with plugin classes, or
    classes. `folder`: instead of the recipe's. Raises `hookflat.UserError` for what the caller can put right,
    `hookflat.TrainingFailed` when the training cannot go on. The global random generators are left as found.
    """
    extra = [p if isinstance(p, type) else Path(p) for p in plugins]
    if not isinstance(recipe, Recipe):
        recipe = load(recipe, overlays=overlays, overrides=overrides, catalogue=Catalogue(extra))
    with global_generators_restored():
        files = tuple(p for p in extra if isinstance(p, Path))
        run = Run(recipe, Path(folder) if folder else recipe.folder, quiet=quiet)
        with run.folder.held():
            return _run(run, files)


def _run(run: Run, files: tuple[Path, ...]) -> Result:
    recipe, path, console = run.recipe, run.folder.path, run.console
    try:
        run.folder.prepare(recipe, files)
        run.accelerator.wait_for_everyone()
        if done := run.folder.load_results():
            console.say(f"{path} is complete already; its results:")
            console.results(done)
            if not (path / "figures").exists():
                draw(run)
            return Result(path, done)
        run.build()
        console.starting(run, run.resume())
        run.tracking = Tracking(recipe, run.folder, run.accelerator)
        loop.train(run, console)
        results = run.finish()
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
        if run.tracking:
            run.tracking.close()
    console.results(results)
    console.say(f"{console.took()}, everything is in {path}")
    return Result(path, results)


def network_of(recipe: Recipe, folder: Path) -> nn.Module:
    """The network that a complete run folder saved, on the run's device, in training mode."""
    run = Run(recipe, folder)
    with global_generators_restored():
        run.build_network()
    run.network.load_state_dict(load_weights(folder / "model.safetensors")[0])
    return run.network


def draw(run: Run) -> None:
    """Figures of every plugin that draws, as PNG files in `figures/`."""
    if not run.main:
        return
    drawn = run.hook.draw(run=run, records=run.folder.records())
    folder = run.folder.path / "figures"
    folder.mkdir(exist_ok=True)
    for figures in drawn:
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
        if run.tracking:
            run.tracking.draw(figures, run.step)


@contextmanager
def global_generators_restored() -> Generator[None]:
    """The generators of random, numpy and torch are outside as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
