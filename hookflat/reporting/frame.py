"""Results of many runs as one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookflat.errors import UserError
from hookflat.records.folder import RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame


def result_rows(*folders: str | Path) -> list[dict[str, Any]]:
    """A row for each measured network in run folders, or in folders of them.

    "run", "protocol" ("" for the recipe's own measures), "recipe", "seed", "network", "epoch", then every number as
    "test_NAME" and "train_NAME". Raises UserError for a folder that is none, and for results that cannot be read.
    """
    rows = []
    for folder in _runs(folders):
        for place in [folder, *folder.evaluations()]:
            if (results := place.read_results()) is None:
                continue
            about: dict[str, Any] = {"run": folder.path.name, "protocol": "" if place is folder else place.path.name}
            about |= {"recipe": results.recipe, "seed": results.protocol.seed}
            for label, numbers in results.models.items():
                values = {f"{s}_{k}": v for s in ("test", "train") for k, v in getattr(numbers, s).items()}
                rows.append(about | {"network": label, "epoch": numbers.epoch} | values)
    return rows


def results(*folders: str | Path) -> DataFrame:
    """`result_rows` as a pandas data frame. Raises UserError without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError('hookflat.results needs pandas: pip install "hookflat[pandas]"') from error
    return pd.DataFrame(result_rows(*folders))


def _runs(folders: tuple[str | Path, ...]) -> list[RunFolder]:
    runs = []
    for path in map(Path, folders):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give run folders, or folders of runs")
        inner = [path] if RunFolder(path).is_run else sorted(f for f in path.iterdir() if f.is_dir())
        runs += [RunFolder(f) for f in inner if RunFolder(f).is_run]
    return runs
