"""Measuring networks that are trained already: hookflat's runs, files of weights, RobustBench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.functional.brackets import global_generators_restored
from hookflat.functional.seeds import fingerprint
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.recipe import Recipe
from hookflat.recipe.shipped import find_protocol
from hookflat.records.folder import RunFolder
from hookflat.records.results import Results
from hookflat.training.ending import ending
from hookflat.training.entry import FinishedRun
from hookflat.training.heading import say_evaluation
from hookflat.training.measuring import quantities
from hookflat.training.run import Run


def evaluate(
    model: str | Path,
    *,
    which: Sequence[str] | str = "last",
    protocol: str | Path = "paper",
    measures: Sequence[str] = (),
    arch: str | None = None,
    data: str | None = None,
    normalize: str = "none",
    key: str | None = None,
    overrides: Iterable[str] | dict[str, Any] = (),
    plugins: Iterable[str | Path | type] = (),
    folder: str | Path | None = None,
    quiet: bool = True,
) -> FinishedRun:
    """Measure a trained network; an interrupted call goes on where it stopped.

    `model`: a run folder, "hub:USER/NAME", a file of weights, or "robustbench:ID" (`Checkpoint` has the other
    arguments). `protocol`: "paper", "quick", "full", or a TOML file of `[eval]` tables; `measures`: single ones by name
    instead, on 1000 test examples.
    `overrides`: as for `hookflat.run`; `eval.eps` and `eval.step_size` are a run's own unless they are set.
    Raises `hookflat.UserError` for what the caller can put right.
    """
    chosen = (which,) if isinstance(which, str) else tuple(which)
    source = Checkpoint(str(model), chosen, arch, data, normalize, key)
    recipe = recipe_of(source, protocol, measures, overrides, plugins)
    named = "-".join(measures) or Path(protocol).stem
    inside = source.is_run and not source.is_on_the_hub
    home = RunFolder(Path(model)).evaluation("").path if inside else Path("evals")
    place = Path(folder) if folder else home / "-".join([*([] if inside else [source.name]), named, *chosen])
    with global_generators_restored():
        run = Run(recipe, place, quiet=quiet)
        with ending(run), run.folder.held():
            results = _evaluate(source, run)
    return FinishedRun(place, results)


def recipe_of(
    source: Checkpoint,
    protocol: str | Path,
    measures: Sequence[str],
    overrides: Any,
    plugins: Iterable[str | Path | type],
) -> Recipe:
    """What a checkpoint is measured by: its data and network, and the stages of a protocol or single measures."""
    tables = source.tables()
    if measures:
        stage = {"splits": ["test"], "examples": 1000} | {name: {} for name in measures}
        tables["eval"] = tables.get("eval", {}) | {"measures": stage}
    overlays = [] if measures else [find_protocol(protocol)]
    needs = ("data",) if source.is_robustbench else ("data", "model")
    catalogue = Catalogue([p if isinstance(p, type) else Path(p) for p in plugins])
    return load_recipe(
        tables, name=source.name, overlays=overlays, overrides=overrides, catalogue=catalogue, needs=needs
    )


def _evaluate(source: Checkpoint, run: Run) -> Results:
    recipe, place, console = run.recipe, run.folder.path, run.console
    run.accelerator.wait_for_everyone()  # the main process holds the folder
    if source.is_robustbench:
        robustbench.check(source.model)
        run.build_data()
    else:
        run.build_network()
    measurements = run.measurements
    plan = {label: measurements.planned(label) for label in source.which}
    results = Results(
        recipe=recipe.name,
        model=source.model,
        processes=run.processes,
        classes=run.data.num_classes,
        setting=measurements.setting(),
        protocol=measurements.protocol(),
        numbers=quantities(recipe),
    )
    done = _same(run, results)
    run.folder.prepare(recipe)
    if done:
        console.say(f"{source.model} is measured already, by the same protocol; the results of {place}:")
    else:
        say_evaluation(run, source.model)
        console.measuring(plan, measurements.tally, lines=True)
    for label, about, network in source.networks(run):
        weights = fingerprint(*(t.detach().cpu() for t in network.state_dict().values()))
        if done and (label not in done.models or done.models[label].weights != weights):
            raise UserError(f"{place} holds the results of other weights: choose another --out, or remove it")
        if not done:
            about |= {"weights": weights}
            results.models[label] = measurements.end(network, label, console.measured, **about)
    if not done:
        run.folder.save_results(results)
    run.accelerator.wait_for_everyone()
    run.close()
    console.results(done or results)
    console.say(f"{console.took()}, everything is in {place}")
    return done or results


def _same(run: Run, results: Results) -> Results | None:
    """Complete results of the same protocol in the folder. Raises UserError for those of another."""
    done = run.folder.whole_results(run.console.say)
    if done is None:
        return None
    for what, name in (("protocol", "protocol"), ("network or other data", "setting")):
        if getattr(done, name) != getattr(results, name):
            raise UserError(
                f"{run.folder.path} holds the results of another {what}: choose another --out, or remove it"
            )
    return done
