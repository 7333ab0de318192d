"""A few of the campaign's hostile files of weights (tests/campaign/test_weights.py)."""

from campaign.test_weights import MEASURE, failure, good, hostile


def test_weights(tmp_path):
    for i, (what, file) in enumerate(hostile(good(), tmp_path)):
        if i % 16 == 5:
            assert not failure(what, file, "eval", file, *MEASURE)
