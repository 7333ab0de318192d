"""A few of the campaign's disks and failing writes."""

import errno
import random

import pytest
from campaign.test_disk import failing, filled, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run").folder


def test_a_run_on_a_disk_without_room_goes_on_where_it_stopped(whole, tmp_path):
    assert filled(whole, tmp_path / "disk", random.Random(0).randrange(60, 140, 4)) == []


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_write_that_fails_is_told_and_loses_nothing(whole, tmp_path, number):
    at = random.Random(number).randrange(1, 200)
    assert failing(whole, tmp_path / "run", at, number) == []
