"""Networks of RobustBench's leaderboards (Croce et al. 2021, arXiv 2010.09670), by the package robustbench.

Version 1.1.1 pins an older timm and imports two modules under names that its requirements do not provide. It is
installed without them, and modules stand in for the two while it is imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from hookflat.errors import UserError
from hookflat.recipe.nearest import nearest
from hookflat.terminal import clipped

if TYPE_CHECKING:
    from torch import nn  # takes seconds to import: not to say that a package is missing

PREFIX = "robustbench:"
WEIGHTS = Path("models")
"""Where the package keeps the files of weights, below the working directory."""
NEEDS = ("robustbench", "geotorch", "torchdiffeq", "gdown", "requests", "pandas")
"""What it imports and hookflat may be without."""
THREATS: dict[str, dict[str, Any]] = {
    "cifar": {"eps": {"Linf": "8/255", "L2": 0.5}, "step_size": {"Linf": 0.007, "L2": 0.1}},
    "imagenet": {"eps": {"Linf": "4/255"}, "step_size": {"Linf": "1/255"}},
}
"""Radii of the leaderboards, and steps of PGD for them."""
INSTALL = "pip install --no-deps robustbench==1.1.1, then pip install geotorch torchdiffeq gdown==5.1.0 requests pandas"


class Entry(NamedTuple):
    """A network, or a pattern of several, on a leaderboard."""

    dataset: str
    threat: str
    name: str

    @property
    def spec(self) -> str:
        """As it is asked for."""
        return PREFIX + "/".join((self.dataset, *((self.threat,) if self.threat != "Linf" else ()), self.name))

    @property
    def file(self) -> Path:
        """Its weights, or of an ensemble what comes before `_m0.pt`."""
        return WEIGHTS / self.dataset / self.threat / f"{self.name}.pt"

    @property
    def threat_options(self) -> dict[str, Any]:
        """The table `[eval]` that measures it under its leaderboard's threat; L-infinity where that is corruptions."""
        norm = self.threat if self.threat in ("Linf", "L2") else "Linf"
        return {"norm": norm} | THREATS["imagenet" if self.dataset == "imagenet" else "cifar"]

    @property
    def in_timm(self) -> str:
        """What the package calls it where it hands it to timm, which keeps its weights in the cache of torch.hub."""
        return f"{self.name}_{self.dataset}_{self.threat}".lower().replace("-", "_")


def read(spec: str) -> Entry:
    """What robustbench:ID, robustbench:DATASET/ID or robustbench:DATASET/THREAT/ID says; cifar10 and Linf by default.

    Raises UserError for another form.
    """
    *board, name = spec.removeprefix(PREFIX).split("/")
    if len(board) > 2 or not all((*board, name)):
        raise UserError(f"{spec}: should be {PREFIX}ID, {PREFIX}DATASET/ID or {PREFIX}DATASET/THREAT/ID")
    dataset, threat = (*board, *("cifar10", "Linf")[len(board) :])
    return Entry(dataset, threat, name)


def check_installed(spec: str) -> None:
    """Raises UserError that names the packages which `spec` needs and which are not installed; imports none."""
    read(spec)
    if missing := [name for name in NEEDS if not _installed(name)]:
        packages = f"the package{'s' * (len(missing) > 1)} {', '.join(missing)}"
        raise UserError(f"{spec} needs {packages}: {INSTALL}")


def check(spec: str) -> Entry:
    """The entry of one network. Raises UserError where the package or the network is not there."""
    entry = read(spec)
    names, boards = _names(spec, entry), _leaderboards(spec)
    if entry.name not in names:
        elsewhere = [
            Entry(dataset, threat, entry.name).spec
            for dataset, threats in boards.items()
            for threat, others in threats.items()
            if entry.name in others
        ]
        hint = f"; there is {', '.join(elsewhere)}" if elsewhere else nearest(entry.name, names)[:300]
        raise UserError(f"{spec}: robustbench has no such network for {entry.dataset}, {entry.threat}{hint}")
    return entry


def matching(spec: str) -> list[str]:
    """Every network of a leaderboard by a pattern: "robustbench:*", "robustbench:cifar10/L2/Wang2023*".

    Raises UserError without the package, for a leaderboard that it has not, and where none is called so.
    """
    entry = read(spec)
    names = [name for name in _names(spec, entry) if fnmatchcase(name, entry.name)]
    if not names:
        raise UserError(f"{spec}: no network of robustbench for {entry.dataset}, {entry.threat} is called so")
    return [entry._replace(name=name).spec for name in names]


def load(spec: str) -> nn.Module:
    """The network, in evaluation mode, from images in [0, 1] to logits.

    The package takes its weights from `WEIGHTS`, and downloads those that are not there. Raises UserError with what
    it said where it cannot.
    """
    entry = check(spec)
    with _importable(spec):
        from robustbench.utils import load_model  # ty: ignore[import-not-found]
    try:
        return load_model(entry.name, model_dir=WEIGHTS, dataset=entry.dataset, threat_model=entry.threat)
    except UnpicklingError as error:
        raise UserError(
            f"{spec}: {entry.file} is no file of tensors alone ({_first_line(error)}), and reading another could run "
            f"code. Remove it where the download broke; if you trust it, write over it what load_model needs of "
            f"torch.load(FILE, weights_only=False), as torch.save({{'state_dict': ...}}, FILE)"
        ) from error
    except Exception as error:  # of the package, and of what it downloads with
        import timm

        place = "the cache of torch.hub" if timm.is_model(entry.in_timm) else entry.file
        raise UserError(
            f"{spec}: robustbench cannot load it: {type(error).__name__}: {_first_line(error)} "
            f"(its weights belong in {place}, and are taken from there)"
        ) from error


def _names(spec: str, entry: Entry) -> list[str]:
    """The networks of the entry's leaderboard. Raises UserError for one that there is not."""
    boards = _leaderboards(spec)
    if entry.threat not in boards.get(entry.dataset, {}):
        there = ", ".join(f"{dataset}/{threat}" for dataset, threats in boards.items() for threat in threats)
        raise UserError(f"{spec}: robustbench has no leaderboard {entry.dataset}/{entry.threat} (there are: {there})")
    return boards[entry.dataset][entry.threat]


def _leaderboards(spec: str) -> dict[str, dict[str, list[str]]]:
    """The networks by data set and threat."""
    with _importable(spec):
        from robustbench.model_zoo import model_dicts  # ty: ignore[import-not-found]
    return {data.value: {kind.value: list(ids) for kind, ids in kinds.items()} for data, kinds in model_dicts.items()}


@contextmanager
def _importable(spec: str) -> Generator[None]:
    """Inside, the package can be imported: modules stand in for those that it names otherwise than they are called."""
    check_installed(spec)
    resources = ModuleType("pkg_resources")  # of setuptools until its version 82
    vars(resources)["resource_filename"] = lambda module, path: str(
        Path(sys.modules[module].__file__ or "").parent / path
    )
    known = {
        "autoattack": import_module("pyautoattack"),
        "autoattack.state": import_module("pyautoattack.state"),
        "pkg_resources": resources,
    }
    lent = {name: module for name, module in known.items() if not _installed(name.partition(".")[0])}
    sys.modules.update(lent)
    try:
        with warnings.catch_warnings(action="ignore"):  # of timm, which has moved what it asks for
            yield
    except ImportError as error:
        raise UserError(f"{spec}: the package robustbench cannot be imported: {error} ({INSTALL})") from error
    finally:
        for name in lent:
            sys.modules.pop(name, None)


def _installed(package: str) -> bool:
    return package in sys.modules or find_spec(package) is not None


def _first_line(error: Exception) -> str:
    return clipped((str(error).strip().splitlines() or [""])[0], 300)
