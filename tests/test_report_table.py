"""The table of a report."""

import csv
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import a_study, network, write

from hookflat import report
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import recipes_folder
from hookflat.reporting.gathering import gather
from hookflat.reporting.table import Cell, in_words, published, split, table1


def test_the_paper_s_numbers_give_the_paper_s_table(tmp_path):
    """Its rows in its order, its groups (6 good, 8 average, 5 poor), its gaps and differences beside equal ones."""
    for name, row in published().items():
        last = network(row["rerr_test"] / 100, 2.0, row["flatness"], train=row["rerr_train"] / 100)
        best = network(row["rerr_test_early_stop"] / 100, 1.0, 0.1)
        write(tmp_path / f"{name}-0", name, last=last, best=best, shipped=True)
    table = table1(gather([tmp_path]))
    methods = [str(row["method"]) for row in published().values()]
    ties = {"MiSH", "Late multi-step"}, {"SiLU", "Weight averaging"}
    mine = [row.title for row in table.rows]
    assert [m for m in mine if not any(m in t for t in ties)] == [m for m in methods if not any(m in t for t in ties)]
    assert [row.group for row in table.rows] == ["good"] * 6 + ["average"] * 8 + ["poor"] * 5
    for row in table.rows:
        for key in ("rerr", "rerr_train", "gap", "average", "early", "difference"):
            assert row.cells[key].mean == pytest.approx(row.paper[key], abs=1e-9)
    baseline = table.rows[-1]
    assert (baseline.title, baseline.paper["gap"]) == ("AT (baseline)", pytest.approx(62.8 - 10.7))
    heads, lines = table.texts()
    assert lines[-1][heads.index("RErr gap")] == lines[-1][heads.index("paper: RErr gap")] == "+52.1"
    assert lines[-1][heads.index("early − last")] == "−8.2"


def test_the_paper_s_numbers_stand_beside_recipes_as_they_ship_only(tmp_path):
    write(tmp_path / "trades-0", "trades_beta9", shipped=True)
    write(tmp_path / "at-0", "at", shipped=True, attack__steps=14)
    write(tmp_path / "mart-0", "mart", shipped=True, loss__beta=1.0)
    write(tmp_path / "mart-1", "mart", 1, shipped=True)
    papers = {row.configuration.key: bool(row.paper) for row in table1(gather([tmp_path])).rows}
    assert papers == {
        "trades_beta9": True,
        "at": False,
        "mart beta=1": False,
        f"mart beta={load_recipe('mart').tables['loss']['beta']:g}": True,
    }


def test_every_recipe_that_ships_has_the_name_of_the_field():
    recipes = [file.stem for file in recipes_folder().glob("*.toml")]
    names = {recipe: in_words(recipe) for recipe in recipes}
    assert [recipe for recipe, name in names.items() if name == recipe.replace("_", " ")] == []
    assert len(set(names.values())) == len(recipes)
    assert not any(", " in name for name in names.values())  # what follows a comma in a title are options
    assert in_words("my_own") == "my own"


def test_means_and_deviations_over_seeds(tmp_path):
    values = [0.41, 0.45, 0.46]
    for seed, value in enumerate(values):
        write(tmp_path / f"mine-{seed}", "mine", seed, last=network(value, 2.0, 1.0))
    (row,) = table1(gather([tmp_path])).rows
    assert row.cells["rerr"].mean == pytest.approx(100 * np.mean(values))
    assert row.cells["rerr"].std == pytest.approx(100 * np.std(values, ddof=1))
    assert row.cells["rerr"].text(1) == "44.0 ± 2.6"
    assert (row.title, row.paper) == ("mine", {})
    assert (Cell((2.0,)).text(2), Cell().text(2), Cell((-1.0,)).text(1, signed=True)) == ("2.00", "", "−1.0")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_groups_are_cut_at_the_percentiles(errors):
    groups = split(errors)
    low, high = np.percentile(errors, [30, 70])
    assert all(
        (e <= low) == (g == "good") and (e > high and e > low) == (g == "poor")
        for e, g in zip(errors, groups, strict=True)
    )


def test_hyper_parameters_make_rows_and_seeds_do_not(tmp_path):
    for beta in (1.0, 3.0, 6.0):
        for seed in (0, 1):
            write(
                tmp_path / f"trades-beta={beta:g}-{seed}", "trades_beta9", seed, loss__beta=beta, run__threads=seed + 1
            )
    write(tmp_path / "at-0", "at")
    rows = table1(gather([tmp_path])).rows
    assert sorted(row.title for row in rows) == ["AT (baseline)", "TRADES, beta 1", "TRADES, beta 3", "TRADES, beta 6"]
    assert {len(row.configuration.runs) for row in rows if row.title != "AT (baseline)"} == {2}


def test_csv_latex_and_markdown_say_the_same(tmp_path):
    a_study(tmp_path, lambda f: 1 + f, methods=7, seeds=2)
    written = report(tmp_path, resamples=50)
    rows = list(csv.DictReader((written.folder / "table1.csv").open()))
    assert [r["method"] for r in rows] == [row.title for row in written.table.rows]
    for r, row in zip(rows, written.table.rows, strict=True):
        assert float(r["loss_mean"]) == pytest.approx(row.cells["loss"].mean, rel=1e-5)
    latex = (written.folder / "table1.tex").read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    columns = len(re.search(r"\\begin{tabular}{(.*)}", latex)[1])
    assert {line.count(" & ") + 1 for line in body} == {columns}
    assert len(body) == 8
    assert latex.count(r"\midrule") == 3  # below the headings, and between three groups
    assert "±" not in latex
    assert "−" not in latex
    first = written.table.rows[0]
    page = (written.folder / "report.md").read_text()
    assert f"| {first.title} | {first.cells['rerr'].text(1)} |" in page
    models = list(csv.DictReader((written.folder / "models.csv").open()))
    assert len(models) == 7 * 2 * 2
    assert {m["network"] for m in models} == {"last", "best"}
