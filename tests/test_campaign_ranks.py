"""A few of the campaign's processes that lose another."""

import pytest
from campaign.test_ranks import one_killed


@pytest.mark.parametrize(("stage", "rank"), [("a step", 1), ("a checkpoint", 0)])
def test_a_process_that_loses_another_says_so_and_ends(tmp_path, stage, rank):
    assert one_killed(tmp_path, 2, stage, rank) == []
