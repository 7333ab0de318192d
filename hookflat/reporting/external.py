"""RErr that others measured of the same networks, from a file beside the runs."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hookflat.errors import UserError
from hookflat.recipe.nearest import nearest
from hookflat.recipe.options import Number
from hookflat.recipe.tables import NORMS
from hookflat.reporting.gathering import Gathered

EXTERNAL = "external.csv"
COLUMNS = ("run", "rerr", "source")


@dataclass(frozen=True)
class External:
    """`rerr` in %, and who published it, where; `norm` and `eps` of the attack, where that is said."""

    run: str
    rerr: float
    source: str
    norm: str | None
    eps: float | None

    def under(self, norm: str, eps: float) -> bool:
        """Whether it can be of that threat."""
        return self.norm in (None, norm) and (self.eps is None or math.isclose(self.eps, eps, rel_tol=0.01))


def external(gathered: Gathered) -> dict[str, External]:
    """By the name of the run: what external.csv in the folder around it says of its last network.

    A line for a run: its folder's name, RErr in %, the source; `norm` and `eps` where they are columns, and then of the
    report's threat alone. Raises UserError for a line that says something else.
    """
    runs, threat, entries = gathered.runs, (gathered.norm, gathered.main.setup["eps"]), {}
    for folder in dict.fromkeys(run.folder.resolve().parent for run in runs):
        if (folder / EXTERNAL).is_file():
            known = _read(folder / EXTERNAL)
            here = {run.folder.resolve().name: run.name for run in runs if run.folder.resolve().parent == folder}
            entries |= {here[entry.run]: entry for entry in known if entry.run in here and entry.under(*threat)}
    return entries


def _read(file: Path) -> list[External]:
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise UserError(f"{file} needs the columns {', '.join(COLUMNS)} in its first line")
        return [_entry(file, reader.line_num, row) for row in reader]


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
    norm, eps = row.get("norm") or None, row.get("eps") or None
    if norm not in (None, *NORMS):
        raise UserError(
            f"{where}: norm should be one of {', '.join(NORMS)}, not {norm!r}{nearest(str(norm), [*NORMS])}"
        )
    try:
        radius = TypeAdapter(Number).validate_python(eps) if eps else None
    except ValidationError as error:
        raise UserError(f"{where}: eps should be a radius as recipes have it, such as 8/255, not {eps!r}") from error
    return External(row["run"], rerr, row["source"], norm, radius)
