"""The folder that is shared: weights, recipe, results, a file for plain torch, and the card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hookflat.errors import UserError
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.records.disk import has_failed, replacing
from hookflat.records.folder import NETWORKS, RunFolder

EXPORTED = "network.pt2"
"""The file that plain torch loads."""


def bundle(
    source: Path,
    *,
    repo: str = "",
    plugins: tuple[Path, ...] = (),
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write what is shared of a complete run into `folder` (of the run: `hub`); returns it. Nothing is sent.

    `repo`: USER/NAME on the hub, for the card. `say` is told what could not be written. Raises UserError for a run that
    is not complete, and a folder that holds anything else.
    """
    run_folder = RunFolder(source)
    tables, results = run_folder.read_recipe(), run_folder.read_results()
    if results is None or run_folder.network("last") is None:
        raise UserError(f"{source} is not complete: hookflat run first finishes and measures it")
    place = folder or source / "hub"
    there = RunFolder(place)
    if place.exists() and any(place.iterdir()) and (there.environment.exists() or not there.is_run):
        raise UserError(f"{place} is no folder to share a run in: it holds other files (choose another with --out)")
    import torch  # with nothing left that could be known without it

    from hookflat.functional.brackets import global_state_restored
    from hookflat.reading.weights import load_into
    from hookflat.sharing.card import Card
    from hookflat.sharing.exporting import export
    from hookflat.training.run import Run

    catalogue = Catalogue(plugins)
    run = Run(load_recipe(tables, origin=str(run_folder.recipe), catalogue=catalogue, needs=("data", "model")), source)
    with global_state_restored():
        run.build_network()
    load_into(run.network, run_folder.load_network("last")[0], f"{source}: the network 'last'")
    images = run.data.test.x[:4].float() / 255

    for file in (run_folder.recipe, run_folder.results, *(source / name for name in NETWORKS.values())):
        _copied(file, place / file.relative_to(source))
    for evaluation in run_folder.evaluations():
        for file in (evaluation.recipe, evaluation.results):
            _copied(file, place / file.relative_to(source))
    exported = True
    try:
        export(run.network, torch.cat([images, images])[:4], place / EXPORTED)
    except UserError as error:
        exported = False
        say(f"{EXPORTED} is left out: {error}")
    card = Card.of(
        run_folder, catalogue, repo=repo, shape=tuple(images.shape[1:]), exported=EXPORTED if exported else ""
    )
    with replacing(place / "README.md") as beside:
        beside.write_text(card.text(), encoding="utf-8")
    return place


def _copied(file: Path, place: Path) -> None:
    if file.is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        except OSError as error:
            if has_failed(error):
                raise
            raise UserError(f"{place} cannot be written: {error.strerror or error}") from error
