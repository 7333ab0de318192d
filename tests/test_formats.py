"""Tables and texts of a report, when the names in them are somebody else's."""

import csv
import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import write
from markdown_it import MarkdownIt

from hookflat import report
from hookflat.reporting.formats import csv_text, literal, markdown

NASTY = "\\`*_{}[]<>()#+-.!|~$&=;:\"' ab1\n"
HOSTILE = "[x](javascript:alert(1)) <img src=x onerror=alert(1)> **b** ![](x) `c` | d"


def rendered(text):
    return MarkdownIt("commonmark").enable("table").enable("strikethrough").render(text)


@given(st.text(NASTY, max_size=40) | st.text(max_size=40))
def test_a_literal_text_is_shown_as_it_is(text):
    line = " ".join(text.split())
    for shown in (rendered(literal(f"a {line}")), rendered(f"- a {literal(line)}\n")):
        inner = re.sub(r"^<ul>\n<li>|</li>\n</ul>\n$|^<p>|</p>\n$", "", shown)
        assert not re.search(r"<\w", inner), shown
        assert "".join(c for c in html.unescape(inner) if c.isprintable()).startswith("a")
        if line.isprintable():
            assert html.unescape(inner).strip() == f"a {line}".strip()


@pytest.mark.parametrize("start", ["# a", "- a", "+ a", "1. a", "> a", "| a"])
def test_a_literal_text_begins_nothing(start):
    assert rendered(literal(start)).startswith("<p>")


def test_cells_stay_in_their_columns():
    table = rendered(markdown(["a|b", "c"], [[HOSTILE, "x|y\nz"]]))
    assert re.findall(r"<(\w+)", table) == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert html.unescape(re.findall(r"<td>(.*?)</td>", table)[0]) == HOSTILE


def test_cells_that_start_a_formula_are_quoted_and_numbers_are_not():
    formulas = ["=1+2", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "=", "－1+1", " =1"]
    numbers = ["-0.5", "+1e-3", "1e+5", "-", "−0.3", "0.1 ± 0.2", "at-0", "\r=1"]
    lines = [[text, -0.5, None] for text in (*formulas, *numbers)]
    read = list(csv.reader(csv_text(["=head", "b", "c"], lines).splitlines()))[1:]
    for text, (cell, number, none) in zip((*formulas, *numbers), read, strict=True):
        quoted = text in formulas and text != "="
        assert cell.startswith("'") == quoted, text
        assert (number, none) == ("-0.5", "")


def test_a_report_on_hostile_names_has_no_markup_and_no_formulas_of_theirs(tmp_path):
    for method in ("=cmd()", "[x](http:x)", "a|b", "\x1b[31mred"):
        write(tmp_path / "runs" / f"{method.replace('/', '')}-0", method)
    report(tmp_path / "runs", folder=tmp_path / "out", resamples=20)
    for file in ("models.csv", "table1.csv", "statistics.csv"):
        for row in csv.reader((tmp_path / "out" / file).read_text().splitlines()):
            for cell in row:
                assert not re.match(r"[=@]|[+-](?![\d.]+(e[+-]?\d+)?$)", cell), cell
    for file in [tmp_path / "out" / "report.html", *(tmp_path / "out").rglob("*.svg")]:
        assert file.read_text().replace("\n", "").isprintable(), file
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.replace("\n", "").isprintable()
    assert "[x](http:x)" not in page
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("| ")]
    assert len(set(widths)) <= 3  # one for each table
