"""A few of the campaign's kills."""

from campaign.test_kills import chain


def test_killed_anywhere_a_run_ends_as_if_never_stopped(tmp_path):
    kills, wrong = chain("entropy_sgd", tmp_path, seed=0, kills=2)
    assert (kills > 0, wrong) == (True, [])
