"""Runs side by side."""

from made_runs import PROTOCOL, measured, network, write

from hookflat.reporting.comparing import compare


def test_numbers_under_two_threats_say_so(tmp_path):
    threats = ({}, {"norm": "L2", "eps": 0.5}, {})
    runs = [write(tmp_path / f"{i}", "at", protocol=PROTOCOL | threat) for i, threat in enumerate(threats)]
    _, numbers, _ = compare(runs)
    assert [(row.name, row.texts) for row in numbers if not row.always] == [
        ("digits-last-best threat", ["L-infinity, eps 0.15", "L2, eps 0.5", "L-infinity, eps 0.15"])
    ]
    assert all(row.always for row in compare([runs[0], runs[2]])[1])


def test_what_runs_are_judged_by_stands_there_also_where_it_is_the_same(tmp_path):
    """With its standard error; what was measured of one alone is a line."""
    pair = (("a", network(0.25, 2.0, 0.9)), ("b", network(0.25, 2.5, 0.00912)))
    runs = [write(tmp_path / name, "at", last=last) for name, last in pair]
    measured(runs[1], {"last": network(0.5, 3.0, 1.0)}, "paper-last")
    rows = compare(runs)[1]
    shown = {row.name.removeprefix("digits-last-best "): row.texts for row in rows if row.shown}
    assert shown == {
        "last test RLoss": ["2.000", "2.500"],
        "last test RErr (AutoAttack)": ["25.0 %", "25.0 %"],
        "last test average-case flatness": ["0.900 ± 0.01", "0.00912 ± 0.01"],
        "last test clean error": ["5.0 %", "5.0 %"],
        "paper-last": ["-", "measured"],
    }
    assert "paper-last last test RLoss" in {row.name for row in rows}  # for scripts
