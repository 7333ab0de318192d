"""A few of the campaign's raising networks and loaders (tests/campaign/test_library.py)."""

import pytest
from campaign.test_library import FUNCTIONS, tried


@pytest.mark.parametrize("name", FUNCTIONS)
def test_library(name):
    results = list(tried(name, (1, 5)))
    assert [told for _, told in results if told] == []
    assert any(raised for raised, _ in results)
