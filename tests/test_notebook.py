"""The notebook under examples/, cell by cell."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "flatness.ipynb"


def test_every_cell_runs_and_measures(monkeypatch):
    matplotlib.use("agg")
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] for c in cells)
    names = {}
    for cell in cells:
        source = "".join(cell["source"])
        for much, little in (("range(8)", "range(2)"), ("steps=10", "steps=2"), ("samples=5", "samples=2")):
            source = source.replace(much, little)  # enough to see that it runs
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    first, last = names["history"]
    assert last["RLoss"] == pytest.approx(names["measured"](names["model"])["RLoss"])
    assert 0 <= last["RErr"] <= 1
    assert last["clean error"] < 0.5 > last["RErr"] or last["RLoss"] < first["RLoss"]
    assert names["axes"].get_xlabel().startswith("average-case flatness")
