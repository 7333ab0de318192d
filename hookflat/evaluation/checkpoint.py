"""A trained network as it was given: a run folder, here or on the hub, a file of weights, or one of RobustBench.

What can be wrong with that is told before torch is loaded, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hookflat.errors import UserError
from hookflat.evaluation import robustbench
from hookflat.reading.shapes import check_classes, classes_of, shapes_in
from hookflat.recipe.catalogue import SLOTS, Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.merging import assignments
from hookflat.recipe.recipe import Recipe
from hookflat.recipe.shipped import find_protocol
from hookflat.records.folder import NETWORKS, RunFolder
from hookflat.terminal import clipped, shortened


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

    @property
    def label(self) -> str:
        """Its name, that of a file with the folder around it: many are called model.pt."""
        around = "" if self.is_run or self.is_robustbench else Path(self.model).parent.name
        return f"{around}-{self.name}" if around not in ("", "..") else self.name

    @cached_property
    def there(self) -> tuple[str, ...]:
        """Those of the networks asked for that there are. Raises UserError where there are none."""
        return self.run_folder.networks_of(self.which) if self.is_run else self.which

    @property
    def origin(self) -> str:
        """Where `tables` are from, for messages."""
        return str(self.run_folder.recipe) if self.is_run else "--arch and --data"

    @property
    def needs(self) -> tuple[str, ...]:
        """Which plugins make it."""
        return ("data",) if self.is_robustbench else ("data", "model")

    def recipe(self, overrides: Iterable[str] | Mapping[str, Any], catalogue: Catalogue | None) -> Recipe:
        """Its data and network, with no measures. Raises UserError as `tables`, and for values that are not used."""
        values = dict(assignments(overrides))
        check_overrides(values)
        tables = self.tables(catalogue)
        return load_recipe(tables, origin=self.origin, overrides=values, catalogue=catalogue, needs=self.needs)

    def tables(self, catalogue: Catalogue | None = None) -> dict[str, Any]:
        """The recipe's tables, without stages of measures; `catalogue`: of what may be named.

        Raises UserError when something is not said or not there.
        """
        for which in self.which:
            if which not in NETWORKS and not re.fullmatch(r"[0-9]{1,9}", which):
                raise UserError(f"--which {shortened(which)}: should be last, best, live or the number of an epoch")
        if self.is_run:
            if self.arch or self.data or self.key or self.normalize != "none":
                told = "its recipe names data and network (no --arch, --data, --normalize, --key)"
                raise UserError(f"{self.model} is a run folder: {told}")
            return self._of_the_run(catalogue or Catalogue())
        if not re.fullmatch(r"none|data|[\d.,eE+-]+/[\d.,eE+-]+", self.normalize):
            raise UserError(f"--normalize {shortened(self.normalize)}: should be none, data, or MEAN,.../STD,...")
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
                recipe = Path(self.model).suffix == ".toml"
                say = "say what network it is for, --arch timm:NAME or --arch resnet18"
                raise UserError(f"{self.model}: {'a recipe: train it, and measure its run folder' if recipe else say}")
        if not self.data:
            raise UserError(
                f"{self.model}: say what to measure on, --data FOLDER (of images), a hub id, or --data digits"
            )
        known = self.data in (catalogue or Catalogue()).names()
        data = {"name": self.data} if known else {"name": "images", "path": self.data}
        tables = {"data": data, "run": {"folder": "evals"}}
        if self.is_robustbench:
            return tables | {"eval": robustbench.read(self.model).threat_options}
        kind, _, network = (self.arch or "").partition(":")
        return tables | {"model": {"name": kind} | ({"network": network} if network else {})}

    def _of_the_run(self, catalogue: Catalogue) -> dict[str, Any]:
        tables = self.run_folder.read_recipe()
        for name in ("data", "model", "eval"):
            if not isinstance(tables.setdefault(name, {} if name == "eval" else None), dict):
                raise UserError(f"{self.run_folder.recipe} is not what hookflat writes: it has no table [{name}]")
        tables["eval"] = {k: v for k, v in tables["eval"].items() if not isinstance(v, dict)}
        # with which loss, attack, optimizer and schedule it was trained is no matter
        tables = {name: table for name, table in tables.items() if name not in SLOTS or name in ("data", "model")}
        named = [tables["data"].get("name", ""), tables["model"].get("name", ""), *(tables.get("plugins") or ())]
        if (missing := [name for name in named if name not in catalogue.names()]) and (
            by := self.run_folder.made_with()
        ):
            unknown = f"no plugin is called {shortened(missing[0])}"
            raise UserError(f"{self.run_folder.recipe}: {unknown} (the run was trained with {by})")
        return tables


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises UserError for a value of a slot that measuring does not look at."""
    for key in overrides:
        slot = key.partition(".")[0]
        if slot in SLOTS and slot not in ("data", "model"):
            raise UserError(
                f"--set {clipped(key)}: networks are measured without [{slot}]; radius, norm and step of the attacks "
                "that measure are in [eval]: eval.eps, eval.norm, eval.step_size"
            )


def _check_measure(name: str, catalogue: Catalogue) -> None:
    try:
        catalogue.find(name)
    except UserError as error:
        raise UserError(f"--measure {shortened(name)}: {error}") from None


def recipe_of(
    source: Checkpoint,
    protocol: str | Path,
    measures: Sequence[str],
    overrides: Any,
    plugins: Iterable[str | Path | type],
    *,
    now: bool = True,
) -> Recipe:
    """What a checkpoint is measured by: its data and network, and the stages of a protocol or single measures.

    `now`: its data must be there already, or to be had.
    Raises UserError for what is wrong with that, before torch is loaded where it is known without.
    """
    catalogue = Catalogue([p if isinstance(p, type) else Path(p) for p in plugins])
    tables, overrides = source.tables(catalogue), dict(assignments(overrides))
    check_overrides(overrides)
    for name in measures:
        _check_measure(name, catalogue)
    of_data = {key: value for key, value in overrides.items() if key.startswith("data.")}
    data = {"data": tables["data"]}
    alone = load_recipe(data, origin=source.origin, overrides=of_data, catalogue=catalogue, needs=["data"])
    known_classes = getattr(alone.slots["data"], "known_classes", None)
    if known_classes and not source.is_run and not source.is_robustbench:
        check_classes(classes_of(shapes_in(Path(source.model), source.key)), known_classes())
    if now:
        alone.check_data()
    if measures:
        stage = {"splits": ["test"], "examples": 1000} | {name: {} for name in measures}
        tables["eval"] = tables.get("eval", {}) | {"measures": stage}
    overlays = [] if measures else [find_protocol(protocol)]
    named = {"name": source.name, "origin": source.origin, "needs": source.needs}
    loaded = load_recipe(tables, **named, overlays=overlays, overrides=overrides, catalogue=catalogue)
    _ = source.there  # raises where there is none
    return loaded
