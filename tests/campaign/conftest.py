"""The campaign: what hookflat does with damaged and hostile things, tried in numbers.

It has its own command, `pytest tests/campaign`, and takes minutes; plain `pytest` leaves it out (`norecursedirs` in
pyproject.toml). One file for each part, and a short form of it in the suite, `tests/test_campaign_PART.py`, that
imports the part (`from campaign.test_PART import ...`) and tries a few with a fixed seed.
"""

from collections.abc import Callable

import pytest

Tally = Callable[[str, int, list[str]], None]

_lines: list[str] = []


@pytest.fixture
def tally() -> Tally:
    """Says what was tried, how often, and every failure: a row of the table in docs/reliability.md."""

    def count(what: str, tried: int, failures: list[str]) -> None:
        _lines.append(f"| {what} | {tried} | {len(failures)} |")
        assert tried, "nothing was tried"
        assert not failures, "\n".join(failures[:20])

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The rows for docs/reliability.md."""
    if _lines:
        terminalreporter.section("campaign")
        terminalreporter.write_line("| what | tried | failed |\n|---|---:|---:|\n" + "\n".join(_lines))
