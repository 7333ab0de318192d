"""Functionally equal networks of another scale, to see which measures of flatness the scale of weights deceives."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hookflat.errors import UserError
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.evaluation.opening import built, networks
from hookflat.functional.brackets import global_state_restored
from hookflat.functional.rescaling import rescale
from hookflat.recipe.catalogue import Catalogue
from hookflat.records.folder import RunFolder
from hookflat.records.weights import save_weights
from hookflat.training.run import Run


def rescaled(
    source: Checkpoint, factor: float, out: Path, overrides: Iterable[str] = (), catalogue: Catalogue | None = None
) -> int:
    """Write the rescaled network of `source`: of a run folder as another run folder, of a file as a safetensors file.

    `hookflat eval` measures it like the original. Returns the number of rescaled convolutions. Raises UserError for a
    network that cannot be rescaled, and an `out` that exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another with --out")
    if source.is_robustbench or len(source.which) > 1:
        raise UserError(f"{source.model}: rescale takes one network of a run folder, or a file of weights")
    run = Run(source.recipe(overrides, catalogue), out)
    with global_state_restored():
        given = built(source, run)
    _, about, network = next(iter(networks(source, run, given)))
    about |= {"rescaled": factor * about.get("rescaled", 1.0)}
    try:
        count = rescale(network, factor)
    except ValueError as error:
        raise UserError(f"{source.model}: {error}") from error
    if not source.is_run:
        save_weights(out, network, **about)
        return count
    beside = RunFolder(out.with_name(f".{out.name}.writing"))
    shutil.rmtree(beside.path, ignore_errors=True)
    beside.save_network("last", network, **about)
    shutil.copyfile(source.run_folder.recipe, beside.recipe)
    beside.path.rename(out)
    return count
