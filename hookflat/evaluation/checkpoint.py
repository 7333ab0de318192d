"""A trained network as it was given: a run folder, here or on the hub, a file of weights, or one of RobustBench."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hookflat.errors import UserError
from hookflat.evaluation import robustbench
from hookflat.functional.layers import Normalized
from hookflat.reading.weights import check_finite, load_into, read_weights
from hookflat.recipe.catalogue import Catalogue
from hookflat.records.folder import NETWORKS, RunFolder
from hookflat.terminal import shortened
from hookflat.training.fitting import check_fit
from hookflat.training.run import Run


@dataclass(frozen=True)
class Checkpoint:
    """What `hookflat eval` was asked to measure, and what is needed to build a network for it.

    `arch`: "timm:NAME" or a model plugin's name; `data`: a data plugin's name, or a folder or hub id of images;
    `normalize`: "none", "data", or "MEAN,.../STD,..." for weights without a normalisation of their own; `key`: which
    weights of a checkpoint. None of them is needed for a run folder.
    """

    model: str
    which: tuple[str, ...] = ("last",)
    arch: str | None = None
    data: str | None = None
    normalize: str = "none"
    key: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a run's folder, here or on the hub."""
        return self.is_on_the_hub or Path(self.model).is_dir()

    @property
    def is_on_the_hub(self) -> bool:
        """Whether it is to be fetched from the Hugging Face Hub, where `hookflat push` put it."""
        return self.model.startswith("hub:")

    @cached_property
    def run_folder(self) -> RunFolder:
        """The run's folder; what is on the hub is fetched. Raises UserError where it cannot be had."""
        if not self.is_on_the_hub:
            return RunFolder(Path(self.model))
        from hookflat.sharing.hub import downloaded

        return RunFolder(downloaded(self.model))

    @property
    def is_robustbench(self) -> bool:
        """Whether it is a network of the package `robustbench`."""
        return self.model.startswith(robustbench.PREFIX)

    @property
    def name(self) -> str:
        """For a title and for the name of a folder."""
        if self.is_robustbench or self.is_on_the_hub:
            return self.model.replace(":", "-").replace("/", "-")
        return Path(self.model).resolve().name if self.is_run else Path(self.model).stem

    def tables(self) -> dict[str, Any]:
        """The recipe's tables, without stages of measures. Raises UserError when something is not said or not there."""
        for which in self.which:
            if which not in NETWORKS and not re.fullmatch(r"[0-9]{1,9}", which):
                raise UserError(f"--which {shortened(which)}: should be last, best, live or the number of an epoch")
        if self.is_run:
            if self.arch or self.data or self.key:
                raise UserError(f"{self.model} is a run folder: its recipe names data and network (no --arch, --data)")
            return self._of_the_run()
        if self.which != ("last",):
            raise UserError(f"--which {self.which[0]}: only a run folder has several networks")
        if self.is_robustbench:
            robustbench.check_installed(self.model)
        else:
            if not Path(self.model).is_file():
                raise UserError(
                    f"{self.model}: neither a run folder, nor a file, nor hub:USER/NAME, nor robustbench:ID"
                )
            if not self.arch:
                raise UserError(f"{self.model}: say what network it is for, --arch timm:NAME or --arch resnet18")
        if not self.data:
            raise UserError(
                f"{self.model}: say what to measure on, --data FOLDER (of images), a hub id, or --data digits"
            )
        known = self.data in Catalogue().names()
        data = {"name": self.data} if known else {"name": "images", "path": self.data}
        tables = {"data": data, "run": {"folder": "evals"}}
        if self.is_robustbench:
            return tables | {"eval": robustbench.read(self.model).threat_options}
        kind, _, network = (self.arch or "").partition(":")
        return tables | {"model": {"name": kind} | ({"network": network} if network else {})}

    def _of_the_run(self) -> dict[str, Any]:
        tables = self.run_folder.read_recipe()
        for name in ("data", "model", "eval"):
            if not isinstance(tables.setdefault(name, {} if name == "eval" else None), dict):
                raise UserError(f"{self.run_folder.recipe} is not what hookflat writes: it has no table [{name}]")
        tables["eval"] = {k: v for k, v in tables["eval"].items() if not isinstance(v, dict)}
        return tables

    def networks(self, run: Run) -> Iterable[tuple[str, dict[str, Any], nn.Module]]:
        """(label, what is known about it, network) of everything asked for; `run` has data and, but for RobustBench,
        a network to load into."""
        if self.is_robustbench:
            with run.accelerator.local_main_process_first():  # which downloads
                network = robustbench.load(self.model).to(run.device)
            check_finite(network.state_dict(), self.model)
            check_fit(network, self.model, run.data)
            yield "last", {}, network
            return
        if not self.is_run:
            _load_unwrapped(run, read_weights(Path(self.model), self.key), self.model, self.normalize)
            run.measurements.start = {}  # theirs is not known
            yield "last", {}, run.network
            return
        for which in self.which:
            weights, about = self.run_folder.load_network(which)
            load_into(run.network, weights, f"{self.model} ({which})")
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
