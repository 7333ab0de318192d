"""The work of `hookflat eval`: a checkpoint's networks, measured into a folder, or found there."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from hookflat import collector
from hookflat.errors import UserError
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.evaluation.opening import built, networks
from hookflat.functional.brackets import global_state_restored
from hookflat.functional.seeds import fingerprint
from hookflat.recipe.recipe import Recipe
from hookflat.records.results import Results
from hookflat.training.ending import ending
from hookflat.training.entry import FinishedRun
from hookflat.training.heading import say_evaluation
from hookflat.training.launch import check_launch
from hookflat.training.measuring import quantities
from hookflat.training.run import Run


def measured(source: Checkpoint, recipe: Recipe, place: Path, *, quiet: bool = True) -> FinishedRun:
    """The networks of `source` measured by `recipe`, in the folder `place`."""
    check_launch(recipe.run)
    with global_state_restored():
        run = Run(recipe, place, quiet=quiet)
        with ending(run), run.folder.held():
            results = _measured(source, run)
    return FinishedRun(place, results)


def _measured(source: Checkpoint, run: Run) -> Results:
    recipe, place, console = run.recipe, run.folder.path, run.console
    run.accelerator.wait_for_everyone()  # the main process holds the folder
    given = built(source, run)
    measurements = run.measurements
    plan = {label: measurements.planned(label) for label in source.there}
    results = Results(
        recipe=recipe.name,
        model=source.model,
        processes=run.processes,
        classes=run.data.num_classes,
        setting=measurements.setting,
        protocol=measurements.protocol(),
        numbers=quantities(recipe),
    )
    opened = iter(networks(source, run, given))
    first = next(opened)  # what does not fit is told before what was measured already
    done = _same(run, results)
    changed = run.folder.prepare(recipe)
    if source.is_run and run.main:
        changed += source.run_folder.changed_code(recipe.foreign_code())
    if without := set(source.which) - set(source.there):
        console.say(f"{source.model} has no network {', '.join(sorted(without))}")
    if changed:
        console.say(f"this is other code than before: {'; '.join(dict.fromkeys(changed))}")
    if not done:
        say_evaluation(run, source.model, None if given is None else source.normalize)
        console.measuring(plan, measurements.tally, lines=True)
    collector.as_usual()
    for label, about, network in chain([first], opened):
        if not done:
            results.models[label] = measurements.end(network, label, console.measured, **about)
            continue
        weights = fingerprint(*(t.detach().cpu() for t in network.state_dict().values()))
        if label not in done.models or done.models[label].weights != weights:
            other = "weights" if given is None else "weights, or of these behind another --normalize"
            raise UserError(f"{place} holds the results of other {other}: choose another --out, or remove it")
    if done:
        console.say(f"{source.model} is measured already, by the same protocol; the results of {place}:")
    else:
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
