"""The networks of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hookflat.errors import UserError
from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.functional.layers import Normalized
from hookflat.reading.weights import check_finite, load_into, read_weights
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
        _load_unwrapped(run, given, source.model, source.normalize)
        run.measurements.start = {}  # theirs is not known
        yield "last", {}, run.network
        return
    for which in source.there:
        weights, about = source.run_folder.load_network(which)
        load_into(run.network, weights, f"{source.model} ({which})")
        yield which, about, run.network


def _load_unwrapped(run: Run, weights: dict[str, torch.Tensor], source: str, normalize: str) -> None:
    """Load foreign weights into the run's network; where they have no normalisation of their own, set it."""
    network = run.network
    fitted = load_into(network, weights, source)
    if not isinstance(network, Normalized) or fitted is network:
        if normalize not in ("none", "data"):
            raise UserError(f"--normalize {normalize}: {source} or its network brings a normalisation of its own")
        return
    if normalize == "data":
        return
    channels = run.data.channels
    mean, std = [0.0] * channels, [1.0] * channels
    if normalize != "none":
        try:
            mean, std = ([float(v) for v in part.split(",")] for part in normalize.split("/"))
        except ValueError:
            mean, std = [], []
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise UserError(
                f"--normalize {normalize}: should be none, data, or MEAN,.../STD,... with {channels} numbers each"
            )
    for buffer, values in ((network.mean, mean), (network.std, std)):
        buffer.copy_(torch.tensor(values).view_as(buffer))
