"""Measuring networks that are trained already: hookflat's runs, files of weights, RobustBench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookflat.evaluation.checkpoint import Checkpoint, recipe_of
from hookflat.records.folder import RunFolder

if TYPE_CHECKING:
    from hookflat.training.entry import FinishedRun


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
    place = Path(folder) if folder else home / "-".join([*([] if inside else [source.label]), named, *chosen])
    from hookflat.evaluation.measured import measured  # loads torch, with nothing left that could be known without it

    return measured(source, recipe, place, quiet=quiet)
