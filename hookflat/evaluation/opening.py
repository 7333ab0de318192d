"""The networks of a checkpoint, loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.functional.brackets import global_state_restored
from hookflat.functional.data import Data
from hookflat.functional.shown import Shown
from hookflat.functional.threats import Attack, Threat
from hookflat.reading.shapes import classes_of
from hookflat.reading.weights import check_finite, load_foreign, load_into, read_weights
from hookflat.recipe.catalogue import Catalogue
from hookflat.training.fitting import check_fit
from hookflat.training.run import Run


@dataclass(frozen=True, repr=False)
class Loaded(Shown):
    """A trained network, in evaluation mode and on the GPU where there is one, and what it was made for.

    `data`: its training and test images, which every measure takes (`data.test`, `data.test.part(0, 1000)`), and of
    which a slice is a pair of tensors (`x, y = data.test[:8]`). `attack`: PGD-20 under the threat of its evaluation.
    `about`: what is known of its training; empty for what was not trained here.
    """

    network: nn.Module
    data: Data
    attack: Attack
    about: dict[str, Any]


def load(
    model: str | Path,
    *,
    which: str = "last",
    arch: str | None = None,
    data: str | None = None,
    normalize: str = "none",
    key: str | None = None,
    overrides: Iterable[str] | dict[str, Any] = (),
    plugins: Iterable[str | Path | type] = (),
) -> Loaded:
    """A trained network with its images: the arguments are those of `hookflat.evaluate`.

    `which`: of a run folder, "last", "best", "live" or the number of a kept epoch. `overrides`: {"data.path": ...}
    where the images lie elsewhere now. The global random generators and torch's number of threads are left as found.
    Raises `hookflat.UserError` for what the caller can put right.
    """
    source = Checkpoint(str(model), (which,), arch, data, normalize, key)
    catalogue = Catalogue([p if isinstance(p, type) else Path(p) for p in plugins])
    recipe = source.recipe(overrides, catalogue)
    with global_state_restored():
        run = Run(recipe, Path(model))
        _, about, network = next(iter(networks(source, run, built(source, run))))
    attack = Attack(Threat(recipe.eval.eps, recipe.eval.norm), recipe.eval.step_size)
    return Loaded(network.eval(), run.data, attack, about)


def built(source: Checkpoint, run: Run) -> dict[str, torch.Tensor] | None:
    """Data and network of `run` as `source` needs them; returns its `foreign_weights`."""
    given = foreign_weights(source)
    run.expected_classes = classes_of({name: tensor.shape for name, tensor in (given or {}).items()})
    if source.is_robustbench:
        robustbench.check(source.model)
        run.build_data()
    else:
        run.build_network()
    return given


def foreign_weights(source: Checkpoint) -> dict[str, torch.Tensor] | None:
    """What a file of weights holds; None of a run folder and of RobustBench. Raises UserError as `read_weights`."""
    return None if source.is_run or source.is_robustbench else read_weights(Path(source.model), source.key)


def networks(
    source: Checkpoint, run: Run, given: dict[str, torch.Tensor] | None
) -> Iterable[tuple[str, dict[str, Any], nn.Module]]:
    """(label, what is known about it, network) of everything asked for.

    `run` has data and, but for RobustBench, a network to load into; `given` are the `foreign_weights`.
    """
    if source.is_robustbench:
        with run.accelerator.local_main_process_first():  # which downloads
            network = robustbench.load(source.model).to(run.device)
        check_finite(network.state_dict(), source.model)
        check_fit(network, source.model, run.data)
        yield "last", {}, network
        return
    if given is not None:
        load_foreign(run.network, given, source.model, source.normalize, "--normalize")
        run.measurements.start = {}  # theirs is not known
        yield "last", {}, run.network
        return
    for which in source.there:
        weights, about = source.run_folder.load_network(which)
        load_into(run.network, weights, f"{source.model} ({which})")
        yield which, about, run.network
