"""Results with a type: what is written is what is read, and nothing is lost on the way."""

import json
import math

import pytest

from hookflat import Quantity, Results, UserError
from hookflat.records.quantities import of_role, quantity
from hookflat.records.results import SCHEMA

MINE = {
    "recipe": "mine",
    "protocol": {"eps": 0.1, "step_size": 0.05, "seed": 3, "stages": {"s": {"examples": {"test": 9}, "measures": {}}}},
    "models": {"last": {"epoch": 2, "test": {"rloss": 1.5, "odd": None}, "later": {"a": 1}}},
    "numbers": {"rloss": {"label": "RLoss", "unit": "loss", "lower_is_better": True}},
    "of a later version": [1, 2],
}


def written(tmp_path, content):
    file = tmp_path / "eval.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_what_is_written_is_what_is_read_unknown_fields_included(tmp_path):
    results = Results.read(written(tmp_path, MINE))
    assert (results.models["last"].test["rloss"], results.version) == (1.5, SCHEMA)
    assert math.isnan(results.models["last"].test["odd"])
    text = results.to_json()
    assert "NaN" not in text
    again = json.loads(text)
    assert again["of a later version"] == [1, 2]
    assert again["models"]["last"] == MINE["models"]["last"] | {"train": {}, "gap": {}, "seconds": {}}
    assert Results.read(written(tmp_path, text)).to_json() == text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"recipe": ', "is not what hookflat writes"),
        ("[]", "is not what hookflat writes"),
        ({"recipe": "x"}, "is not what hookflat writes: protocol: Field required"),
        (MINE | {"models": {"last": {"test": {"rloss": "high"}}}}, "models.last.test.rloss"),
        (MINE | {"schema": SCHEMA + 1}, "is of a later hookflat"),
    ],
)
def test_what_hookflat_did_not_write_is_told_with_the_file(content, told, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        Results.read(written(tmp_path, content))
    assert "eval.json" in str(error.value)


def test_a_quantity_is_shown_in_its_unit_and_undeclared_numbers_by_their_names():
    assert Quantity("RErr", "share").text(0.4567) == "45.7 %"
    assert Quantity("RLoss", "loss").text(1.23456) == "1.235"
    assert Quantity("epoch", "count").text(7.0) == "7"
    assert quantity("my_number", {}).label == "my number"
    declared = {"a": Quantity("A", role="RErr"), "b": Quantity("B", role="RErr", rank=1), "c": Quantity("C")}
    assert of_role("RErr", declared) == ["b", "a"]


def test_a_stranger_s_share_is_a_percentage_in_table_and_report(tmp_path, capsys):
    from dataclasses import dataclass

    from hookflat import hookimpl, report, run
    from hookflat.testing import TinyData, TinyModel, recipe

    @dataclass(eq=False)
    class Luck:
        @hookimpl
        def measure(self):
            return {"luck": 0.125}

        def numbers(self):
            return {"luck": Quantity("share of luck", "share", headline=True)}

    plugins = [TinyData, TinyModel, Luck]
    run(recipe({"eval": {"final": {"luck": {}}}}), folder=tmp_path / "run", plugins=plugins, quiet=False)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "share of luck, test" in line]
    assert "12.5 %" in row
    page = report(tmp_path / "run", resamples=10).page.read_text()
    assert "<td>share of luck</td><td>last</td><td>test</td><td>12.5 %</td>" in page
