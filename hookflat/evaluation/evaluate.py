"""Measuring networks that are trained already: hookflat's runs, files of weights, RobustBench."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hookflat.errors import UserError
from hookflat.evaluation.weights import load_into, load_weights, read_weights
from hookflat.functional.layers import Normalized
from hookflat.functional.seeds import fingerprint
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import Recipe, load
from hookflat.recipe.shipped import find_recipe
from hookflat.training.entry import Result, global_generators_restored
from hookflat.training.run import Run

NAMED = {"last": "model.safetensors", "best": "checkpoints/best.safetensors", "live": "model_in_training.safetensors"}
"""Networks of a run folder; a number is the one kept after that epoch."""


@dataclass(frozen=True)
class Source:
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
        """Whether it is a run's folder."""
        return Path(self.model).is_dir()

    @property
    def is_robustbench(self) -> bool:
        """Whether it is a network of the package `robustbench`."""
        return self.model.startswith("robustbench:")

    @property
    def name(self) -> str:
        """For a title and for the name of a folder."""
        if self.is_robustbench:
            return self.model.replace(":", "-").replace("/", "-")
        return Path(self.model).resolve().name if self.is_run else Path(self.model).stem

    def tables(self) -> dict[str, Any]:
        """The recipe's tables, without stages of measures. Raises UserError when something is not said or not there."""
        if self.is_run:
            if self.arch or self.data or self.key:
                raise UserError(f"{self.model} is a run folder: its recipe names data and network (no --arch, --data)")
            return self._of_the_run()
        if self.which != ("last",):
            raise UserError(f"--which {self.which[0]}: only a run folder has several networks")
        if not self.is_robustbench:
            if not Path(self.model).is_file():
                raise UserError(f"{self.model}: neither a run folder, nor a file, nor robustbench:ID")
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
            return tables
        kind, _, network = (self.arch or "").partition(":")
        return tables | {"model": {"name": kind} | ({"network": network} if network else {})}

    def _of_the_run(self) -> dict[str, Any]:
        recipe = Path(self.model, "recipe.toml")
        if not recipe.is_file():
            raise UserError(f"{self.model} is no run folder: it has no recipe.toml")
        tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
        tables["eval"] = {k: v for k, v in tables.get("eval", {}).items() if not isinstance(v, dict)}
        return tables

    def networks(self, run: Run) -> Iterable[tuple[str, dict[str, Any], nn.Module]]:
        """(label, what is known about it, network) of everything asked for; `run` has data and, but for RobustBench,
        a network to load into."""
        if self.is_robustbench:
            yield "last", {}, _from_robustbench(self.model).to(run.device)
            return
        if not self.is_run:
            load_unwrapped(run, read_weights(Path(self.model), self.key), self.model, self.normalize)
            yield "last", {}, run.network
            return
        for which in self.which:
            weights, about = load_weights(self._file(which))
            load_into(run.network, weights, f"{self.model} ({which})")
            yield which, about, run.network

    def _file(self, which: str) -> Path:
        folder = Path(self.model)
        name = NAMED.get(which, f"checkpoints/epoch-{int(which):06d}.safetensors" if which.isdigit() else "")
        if name and (folder / name).is_file():
            return folder / name
        there = [w for w, file in NAMED.items() if (folder / file).is_file()]
        there += [str(int(f.stem[6:])) for f in sorted(folder.glob("checkpoints/epoch-*.safetensors"))]
        hint = f"it has {', '.join(there)}" if there else "its training is not finished"
        raise UserError(f"{folder} has no network {which!r}: {hint}")


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
) -> Result:
    """Measure a trained network; an interrupted call goes on where it stopped.

    `model`: a run folder, a file of weights, or "robustbench:ID" (`Source` has the other arguments). `protocol`:
    "paper", "quick", "full", or a TOML file of `[eval]` tables; `measures`: single ones by name instead, on 1000 test
    examples.
    `overrides`: as for `hookflat.run`; `eval.eps` and `eval.step_size` are a run's own unless they are set.
    Raises `hookflat.UserError` for what the caller can put right.
    """
    chosen = (which,) if isinstance(which, str) else tuple(which)
    source = Source(str(model), chosen, arch, data, normalize, key)
    recipe = _recipe(source, protocol, measures, overrides, plugins)
    named = "-".join(measures) or Path(protocol).stem
    home = Path(model, "eval") if source.is_run else Path("evals")
    place = Path(folder) if folder else home / "-".join([*([] if source.is_run else [source.name]), named, *chosen])
    with global_generators_restored():
        run = Run(recipe, place, quiet=quiet)
        with run.folder.held():
            return _evaluate(source, run)


def _recipe(
    source: Source, protocol: str | Path, measures: Sequence[str], overrides: Any, plugins: Iterable[str | Path | type]
) -> Recipe:
    tables = source.tables()
    if measures:
        stage = {"splits": ["test"], "examples": 1000} | {name: {} for name in measures}
        tables["eval"] = tables.get("eval", {}) | {"measures": stage}
    overlays = [] if measures else [protocol_file(protocol)]
    needs = ("data",) if source.is_robustbench else ("data", "model")
    catalogue = Catalogue([p if isinstance(p, type) else Path(p) for p in plugins])
    recipe = load(tables, overlays=overlays, overrides=overrides, catalogue=catalogue, needs=needs)
    recipe.name = source.name
    return recipe


def protocol_file(name: str | Path) -> Path:
    """A TOML file, or a shipped protocol by its name. Raises UserError where there is none."""
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    try:
        return find_recipe(f"protocols/{name}")
    except UserError:
        raise UserError(
            f"no protocol {str(name)!r}: there are paper, quick, full, landscapes and digits, or give a TOML file"
        ) from None


def _evaluate(source: Source, run: Run) -> Result:
    recipe, place, console, measurements = run.recipe, run.folder.path, run.console, run.measurements
    if source.is_robustbench:
        run.data = run.hook.build_data(run=run)
    else:
        run.build_network()
    plan = {label: measurements.planned(label) for label in source.which}
    results: dict[str, Any] = {"model": source.model, "recipe": recipe.name, "processes": run.processes}
    results |= {"classes": run.data.num_classes, "setting": measurements.setting()}
    results |= {"protocol": measurements.protocol(), "models": {}}
    try:
        done = _same(run, results)
        run.folder.prepare(recipe)
        if done:
            console.say(f"{source.model} is measured already, by the same protocol; the results of {place}:")
        else:
            console.evaluating(run, source.model)
            console.measuring(plan, measurements.tally, lines=True)
        for label, about, network in source.networks(run):
            weights = fingerprint(*(t.detach().cpu() for t in network.state_dict().values()))
            if done and done["models"].get(label, {}).get("weights") != weights:
                raise UserError(f"{place} holds the results of other weights: choose another --out, or remove it")
            if not done:
                entry = measurements.end(network, label)
                results["models"][label] = about | {"weights": weights} | entry
        if not done:
            run.folder.save_results(results)
        run.accelerator.wait_for_everyone()
    except Exception as error:
        if not isinstance(error, UserError) and (told := run.blame(error)):
            raise told from error
        raise
    except KeyboardInterrupt:
        console.close()
        console.say("stopped; the same command goes on from here")
        raise
    finally:
        console.close()
    console.results(done or results)
    console.say(f"{console.took()}, everything is in {place}")
    return Result(place, done or results)


def _same(run: Run, results: dict[str, Any]) -> dict[str, Any] | None:
    """Complete results of the same protocol in the folder. Raises UserError for those of another."""
    done = run.folder.load_results()
    if done is None:
        return None
    for what, name in (("protocol", "protocol"), ("network or other data", "setting")):
        if done.get(name) != results[name]:
            raise UserError(
                f"{run.folder.path} holds the results of another {what}: choose another --out, or remove it"
            )
    return done


def load_unwrapped(run: Run, weights: dict[str, torch.Tensor], source: str, normalize: str) -> None:
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


def _from_robustbench(spec: str) -> nn.Module:
    """robustbench:ID, or robustbench:DATASET/ID (cifar10 unless it is named), L-infinity."""
    try:
        from robustbench.utils import load_model  # ty: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f"{spec} needs the package robustbench: {error}") from error
    dataset, _, name = spec.removeprefix("robustbench:").rpartition("/")
    try:
        return load_model(model_name=name, dataset=dataset or "cifar10", threat_model="Linf")
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{spec}: robustbench cannot load it: {type(error).__name__}: {error}") from error
