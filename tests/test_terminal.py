"""Text on its way to a terminal."""

import io

import pytest
from rich.table import Table

from hookflat.display import Terminal
from hookflat.terminal import clipped, printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("früh, ±, 語\tin\nlines", "früh, ±, 語\tin\nlines"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\rb\x00c\x7f", "a\\rb\\x00c\\x7f"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_no_text_is_spelt_out(text, shown):
    assert printable(text) == shown


def test_printed_texts_and_tables_hold_no_codes_and_no_markup():
    out = io.StringIO()
    terminal = Terminal(file=out, width=80)
    terminal.print("[bold]\x1b[2J :smile: [/nothing]")
    table = Table("head\x1b[1m", title="title\x9b")
    table.add_row("cell\x07 [red]", "")
    terminal.print(table)
    text = out.getvalue()
    assert "[bold]\\x1b[2J :smile: [/nothing]" in text
    for part in ("head\\x1b[1m", "title\\x9b", "cell\\x07 [red]"):
        assert part in text
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_values_are_cut_in_the_middle():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shortened("loss") == "'loss'"
    assert len(shortened("x" * 10_000)) <= 80
    assert shortened(10**5000) == "a int too large to write"
    assert shortened(deep) == "a list too large to write"
    assert clipped("beginning" + "x" * 500 + "end").startswith("beginning")
    assert clipped("beginning" + "x" * 500 + "end").endswith("end")
