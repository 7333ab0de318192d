"""What a recipe is once it is checked: options, plugin instances, and where every value came from."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field

from hookflat.functional.choices import Norm, Precision, check_radius
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.nearest import nearest
from hookflat.recipe.options import Number, Period
from hookflat.recipe.tables import Place
from hookflat.recipe.toml import LONGEST_FOLDER

TRACKERS = ["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
"""Accelerate's, each called as its package; asking Accelerate would load torch."""


@dataclass(eq=False)
class RunOptions:
    """The table `[run]`."""

    seed: Annotated[int, Field(ge=0, description="of every random number")] = 0
    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 80
    epochs_factor: Annotated[Number, Field(gt=0, description="multiplies epochs, at every scale")] = 1.0
    batch_size: Annotated[int, Field(ge=2, description="examples a step, over all processes")] = 128
    batch_size_factor: Annotated[Number, Field(gt=0, description="multiplies batch_size, at every scale")] = 1.0
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Field(description="of the training passes")] = "fp32"
    accumulation: Annotated[int, Field(ge=1, description="parts of a process's batch, one after another")] = 1
    max_grad_norm: Annotated[Number, Field(ge=0, description="L2 norm that gradients are clipped to; 0: none")] = 0.0
    compile: Annotated[bool, Field(description="torch.compile the network in training")] = False
    threads: Annotated[int, Field(ge=0, description="CPU threads a process; 0: as the network needs")] = 0
    checkpoint_steps: Annotated[int, Field(ge=1, description="steps between checkpoints inside an epoch")] = 1000
    folder: Annotated[
        str,
        Field(max_length=LONGEST_FOLDER, description="{recipe}, with what is laid over it, and {seed} are filled in"),
    ] = "runs/{recipe}-{seed}"

    def __post_init__(self) -> None:
        unknown = set(re.findall(r"{(.*?)}", self.folder)) - {"recipe", "seed"}
        if unknown:
            raise ValueError(f"folder fills in {{recipe}} and {{seed}} only, not {{{unknown.pop()}}}")

    @property
    def total_epochs(self) -> int:
        """`epochs` times `epochs_factor`."""
        return max(1, round(self.epochs * self.epochs_factor))

    @property
    def scaled_batch_size(self) -> int:
        """`batch_size` times `batch_size_factor`."""
        return max(2, round(self.batch_size * self.batch_size_factor))


@dataclass(eq=False)
class EvalOptions:
    """The table `[eval]`, without its stages."""

    norm: Annotated[Norm, Field(description="of every measure's threat; where nothing is said, that of [attack]")] = (
        "Linf"
    )
    eps: Annotated[Number, Field(ge=0, description="radius of every measure's threat, images in [0, 1]")] = 8 / 255
    step_size: Annotated[Number, Field(gt=0, description="of every measure's PGD; unsaid, it follows eps")] = 0.007
    batch_size: Annotated[int, Field(ge=1, description="examples a batch, on each process")] = 250
    precision: Annotated[Precision, Field(description="of PGD's search; every number is the network's in float32")] = (
        "fp32"
    )

    def __post_init__(self) -> None:
        check_radius(self.norm, self.eps)


@dataclass(eq=False)
class Stage:
    """One table `[eval.STAGE]`: measures on splits, all through the training (`every`) or, without it, at its end."""

    every: Annotated[Period | None, Field(description="epochs, or a share of the training below 1")] = None
    splits: Annotated[list[Literal["train", "test"]], Field(description="which sets", min_length=1)] = field(
        default_factory=lambda: ["test"]
    )
    examples: Annotated[int, Field(ge=1, description="of each split")] = 1000
    take: Annotated[Literal["first", "last"], Field(description="which; the last count held-out ones too")] = "first"
    models: Annotated[
        list[Literal["last", "best"]],
        Field(description="at the end: which networks (best: early stopped)", min_length=1),
    ] = field(default_factory=lambda: ["last", "best"])


@dataclass(eq=False)
class TrackOptions:
    """The table `[track]`; in a recipe `trackers` is called `with`."""

    trackers: Annotated[list[str], Field(description="tensorboard, wandb, trackio ...")] = field(default_factory=list)
    project: Annotated[str, Field(description="as the tracker groups runs")] = "hookflat"

    def __post_init__(self) -> None:
        for name in self.trackers:
            if name not in TRACKERS:
                raise ValueError(f"no tracker is called {name!r}{nearest(name, TRACKERS)}")
            if find_spec(name) is None:
                raise ValueError(f"the tracker {name!r} is not installed: pip install {name}")


@dataclass
class Recipe:
    """A checked recipe: options, plugin instances, and where every value came from."""

    name: str
    run: RunOptions
    eval: EvalOptions
    track: TrackOptions
    slots: dict[str, Any]
    """Slot to plugin instance."""
    slot_names: dict[str, str]
    """Slot to plugin name."""
    plugins: dict[str, Any]
    """`[plugins.*]`: name to instance, in recipe order, without the disabled ones."""
    stages: dict[str, Stage]
    measures: dict[str, dict[str, Any]]
    """Stage to measures: name to instance."""
    origins: dict[Place, str]
    """Path of a value to "file:line" or "--set"."""
    tables: dict[str, Any] = field(repr=False)
    """The resolved recipe with every default filled in."""
    catalogue: Catalogue = field(repr=False)
    """Where its plugins were found."""
    suffix: str = ""
    """What was laid over it, as it stands in the folder's name: "+cifar10+beta=3"."""

    @property
    def folder(self) -> Path:
        """The run's folder, where nobody says another."""
        name = self.name + self.suffix
        return Path(self.run.folder.replace("{recipe}", name).replace("{seed}", str(self.run.seed)))

    def check_data(self) -> None:
        """Raises UserError where the data's plugin says, before it reads any, that there is none."""
        if check := getattr(self.slots["data"], "check_there", None):
            check()

    def registered(self) -> dict[str, Any]:
        """All training plugins by name in call order: `[plugins.*]` first, then the slots."""
        return self.plugins | {self.slot_names[s]: p for s, p in self.slots.items()}

    def packages(self) -> list[str]:
        """The installed packages that its plugins and measures are of."""
        measures = (name for measures in self.measures.values() for name in measures)
        sources = map(self.catalogue.find, {*self.slot_names.values(), *self.plugins, *measures})
        return sorted({s.package.rpartition(" ")[0] for s in sources if isinstance(s.target, EntryPoint)})

    def foreign_code(self) -> dict[str, Path]:
        """The files of code that are not hookflat's: those of `--plugin`, and of what its packages' plugins are in."""
        files = {str(file): file.resolve() for file in self.catalogue.extra if isinstance(file, Path)}
        for cls in map(type, [*self.registered().values(), *(m for s in self.measures.values() for m in s.values())]):
            own = cls.__module__.partition(".")[0] in ("hookflat", "hookflat_plugins")
            source = None if own else getattr(sys.modules.get(cls.__module__), "__file__", None)
            file = Path(source or "").resolve()
            if file.suffix == ".py" and file not in files.values() and file.is_file():
                files[cls.__module__] = file
        return files

    def to_toml(self) -> str:
        """The resolved recipe, re-runnable as it is."""
        return tomli_w.dumps(self.tables)

    def origin(self, path: Place) -> str:
        """Where a value came from, or "default"."""
        return self.origins.get(path, "default")
