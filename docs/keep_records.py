"""Copy a run's records as docs/examples keeps them: `python docs/keep_records.py RUN FOLDER`.

Recipe, metrics of every epoch, results, data and versions, and those of each evaluation with its landscapes; no
weights, no checkpoints, no figures. Of the environment the program's path, the platform and the end of the revision are
left out, and paths in this checkout begin at its root.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("data.json", "environment.json", "eval.json", "metrics.jsonl", "recipe.toml")


def keep(run: Path, folder: Path) -> None:
    """The records of one run. Raises SystemExit where one names a folder of this machine."""
    names = [*KEPT, "tables/*landscape*.parquet"]
    for file in [file for name in names for file in (*run.glob(name), *run.glob(f"eval/*/{name}"))]:
        place = folder / file.relative_to(run)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "environment.json":
            record = json.loads(file.read_text(encoding="utf-8"))
            record["command"][0] = "hookflat"
            record["platform"] = record["platform"].partition("-")[0]
            record["git_revision"] = (record["git_revision"] or "")[:7]
            place.write_text(json.dumps(record, indent=2).replace(f"{ROOT}/", ""), encoding="utf-8")
        else:
            shutil.copy(file, place)
        held = place.read_bytes()
        if any(str(here).encode() in held for here in (Path.home(), run.resolve().parent, ROOT)):
            raise SystemExit(f"{place} names a folder of this machine")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    keep(options.run, options.folder)


if __name__ == "__main__":
    main()
