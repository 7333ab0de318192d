"""What happens after an epoch, and after the last one."""

from __future__ import annotations

import time
from typing import Any

from hookflat.functional.brackets import restored
from hookflat.functional.cuda_graphs import Replayed
from hookflat.reading.weights import load_into
from hookflat.records.results import Results
from hookflat.training.measuring import Subjects, quantities
from hookflat.training.run import Run


def end_epoch(run: Run) -> dict[str, Any]:
    """Record the epoch's training loss, run the measures that are due; returns what an epoch's line shows."""
    run.check()
    run.epoch += 1
    cancelled = run.loss_scale.cancelled if run.loss_scale else 0
    loss = run.accelerator.reduce(run.loss_sum / max(1, run.steps_per_epoch - cancelled), "mean")
    run.loss_sum.zero_()
    line: dict[str, Any] = {"lr": run.lr, "loss": float(loss)}
    if run.loss_scale:
        line |= {"cancelled_steps": cancelled, "loss_scale": run.loss_scale.scale}
        run.loss_scale.cancelled = 0
    run.record("training", "train", **line)
    due = {n: s for n, s in run.measurements.during().items() if s.every and run.is_due(s.every)}
    if due:
        model = run.eval_model()
        shared: Subjects = {}
        for name, stage in due.items():
            subjects = run.measurements.subjects(model, stage, shared)
            for split, result in run.measurements.stage(name, subjects).items():
                run.record(name, split, **result["values"])
                line[split] = line.get(split, {}) | result["values"]
    run.hook.epoch_end(run=run)
    return line


def _release(run: Run) -> None:
    """What the passes of a training kept on a GPU is given back, for measures to work in."""
    for kept in (*run.kept_views(), *(m for m in run.model.modules() if isinstance(m, Replayed))):
        kept.release()


def finish(run: Run) -> Results:
    """Save the network and measure the last and the best one by the final stages."""
    seconds = round(time.perf_counter() - run.began, 1)
    _release(run)
    model, folder, measurements = run.eval_model(), run.folder, run.measurements
    folder.save_network("last", model, epoch=run.epoch)
    if model is not run.network:
        folder.save_network("live", run.network, epoch=run.epoch)
    run.accelerator.wait_for_everyone()
    results = Results(
        recipe=run.recipe.name,
        epochs=run.epochs,
        processes=run.processes,
        seconds={"training": seconds},
        classes=run.data.num_classes,
        protocol=measurements.protocol(),
        numbers=quantities(run.recipe),
    )
    kept = ["last", *(["best"] if folder.network("best") else [])]
    run.console.measuring({label: measurements.planned(label) for label in kept}, measurements.tally)
    done = run.console.measured
    results.models["last"] = measurements.end(model, "last", done, epoch=run.epoch)
    if "best" in kept:
        weights, about = folder.load_network("best")
        with restored(model.state_dict().values()):
            load_into(model, weights, str(folder.network("best")))
            results.models["best"] = measurements.end(model, "best", done, **about)
    return results
