"""RErr that others measured of the same networks, from a file beside the runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hookflat.errors import UserError
from hookflat.recipe.nearest import nearest
from hookflat.reporting.runs import MeasuredRun

EXTERNAL = "external.csv"
COLUMNS = ("run", "rerr", "source")


@dataclass(frozen=True)
class External:
    """`rerr` in %, and who published it, where."""

    rerr: float
    source: str


def external(runs: Iterable[MeasuredRun]) -> dict[str, External]:
    """By the name of the run: what external.csv in the folder around it says of its last network.

    A line for a run: its folder's name, RErr in %, the source. Raises UserError for a line that says something else.
    """
    runs, found = list(runs), {}
    for folder in dict.fromkeys(run.folder.resolve().parent for run in runs):
        if (folder / EXTERNAL).is_file():
            known = _read(folder / EXTERNAL)
            here = {run.folder.resolve().name: run.name for run in runs if run.folder.resolve().parent == folder}
            found |= {here[name]: number for name, number in known.items() if name in here}
    return found


def _read(file: Path) -> dict[str, External]:
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise UserError(f"{file} needs the columns {', '.join(COLUMNS)} in its first line")
        return {row["run"]: _entry(file, reader.line_num, row) for row in reader}


def _entry(file: Path, line: int, row: dict[str, str]) -> External:
    where = f"{file}, line {line}"
    if not row["run"] or not (file.parent / row["run"]).is_dir():
        names = [f.name for f in file.parent.iterdir() if f.is_dir()]
        raise UserError(f"{where}: there is no run {row['run']!r} beside it{nearest(row['run'], names)}")
    try:
        rerr = float(row["rerr"])
    except (TypeError, ValueError):
        rerr = -1.0
    if not 0 <= rerr <= 100:
        raise UserError(f"{where}: rerr should be in %, 0 to 100, not {row['rerr']!r}")
    if not row["source"]:
        raise UserError(f"{where}: say in the column source who published it, where")
    return External(rerr, row["source"])
