"""Runs side by side."""

from made_runs import PROTOCOL, write

from hookflat.reporting.comparing import compare


def test_numbers_under_two_threats_say_so(tmp_path):
    threats = ({}, {"norm": "L2", "eps": 0.5}, {})
    runs = [write(tmp_path / f"{i}", "at", protocol=PROTOCOL | threat) for i, threat in enumerate(threats)]
    _, numbers, _ = compare(runs)
    assert [(row.name, row.texts) for row in numbers] == [
        ("digits-last-best threat", ["L-infinity, eps 0.15", "L2, eps 0.5", "L-infinity, eps 0.15"])
    ]
    assert compare([runs[0], runs[2]])[1] == []
