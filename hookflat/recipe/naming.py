"""What a run's folder is called where nobody says: the recipe, what was laid over it, and the seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LONGEST = 60
"""Characters of values in a folder's name; more become eight letters of their hash."""

_NAMED_ALREADY = ("run.seed", "run.folder")


def plain(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]", "_", f"{value:g}" if isinstance(value, float) else str(value))


def suffix(overlays: Iterable[str | Path], plugins: Iterable[Path], overrides: Mapping[str, Any]) -> str:
    """What follows a recipe's name: "+cifar10+smoothing+beta=3"; "" of a recipe as it is.

    Overlays and files of plugins by their names; values by the last part of their key, in the order of their keys.
    """
    laid = [plain(Path(file).stem) for file in (*overlays, *plugins)]
    values = {key: overrides[key] for key in sorted(overrides) if key not in _NAMED_ALREADY}
    last = [key.rpartition(".")[2] for key in values]
    short = [key if last.count(name) > 1 else name for key, name in zip(values, last, strict=True)]
    told = [f"{plain(name)}={plain(value)}" for name, value in zip(short, values.values(), strict=True)]
    if len("+".join(told)) > LONGEST:
        told = [hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:8]]
    return "".join(f"+{part}" for part in [*laid, *told])
