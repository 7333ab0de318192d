"""A few of the campaign's kills."""

from campaign.test_kills import killed, never_killed


def test_killed_anywhere_a_run_ends_as_if_never_stopped(tmp_path):
    whole, count = never_killed("entropy_sgd", tmp_path / "whole")
    assert killed("entropy_sgd", whole, tmp_path / "killed", ["while renaming", count // 3]) == (2, [])
