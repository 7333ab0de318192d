"""What the page's script draws: every network, with every number that two axes may have."""

from __future__ import annotations

import math
from typing import Any

from hookflat.records.quantities import is_error_of
from hookflat.reporting.gathering import Gathered
from hookflat.reporting.runs import distinct, parted
from hookflat.reporting.table import Table1


def explorer(gathered: Gathered, table: Table1) -> dict[str, Any]:
    """Quantities, methods and points, for JSON; empty where fewer than two quantities were measured.

    A point has the values of the quantities in their order, None for what its network lacks. `x`, `y`: the quantities
    of Fig. 1, by number.
    """
    networks = distinct(gathered.runs)
    numbers = dict.fromkeys(name for *_, n in networks for name in n.test if not is_error_of(name))
    train = dict.fromkeys(f"{name} train" for *_, n in networks for name in n.train if not is_error_of(name))
    gaps = [table.numbers[role] for role in ("RLoss", "RErr") if table.numbers[role]]
    keys = [*numbers, *train, *(f"{name} gap" for name in gaps if any(name in n.gap for *_, n in networks))]
    keys = [key for key in keys if len({v for *_, n in networks if not math.isnan(v := n.value(key))}) > 1]
    if len(keys) < 2:
        return {}
    titles = {id(run): (row.title, row.group) for row in table.rows for run in row.configuration.runs}
    points = [
        {
            "title": titles[id(run)][0],
            "method": run.method if run.label else titles[id(run)][0].split(", ")[0],
            "seed": run.seed,
            "network": "early-stopped" if label == "best" or run.early_stopped else "last",
            "group": titles[id(run)][1],
            "rescaled": run.rescaled is not None,
            "anchor": run.anchor,
            "values": [None if math.isnan(v := network.value(key)) else float(f"{v:.5g}") for key in keys],
        }
        for run, label, network in networks
    ]
    flatness, loss = table.numbers["average flatness"], table.numbers["RLoss"]
    return {
        "quantities": [_quantity(gathered, key) for key in keys],
        "methods": sorted({str(point["method"]) for point in points}, key=str.lower),
        "points": points,
        "x": keys.index(flatness) if flatness in keys else 0,
        "y": keys.index(loss) if loss in keys else 1,
    }


def _quantity(gathered: Gathered, key: str) -> dict[str, str]:
    name, part = parted(key)
    declared = gathered.quantities.get(name)
    label = {"test": "{}", "train": "{}, training images", "gap": "gap of {}"}[part].format(gathered.name(name))
    return {"label": label, "unit": declared.unit if declared else "number"}
