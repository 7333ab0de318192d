"""The networks of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.reading.weights import check_finite, load_foreign, load_into, read_weights
from hookflat.training.fitting import check_fit
from hookflat.training.run import Run


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
