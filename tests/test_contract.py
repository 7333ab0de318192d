"""Every installed plugin keeps the contract that hookflat.testing ships to third parties."""

import pytest

from hookflat import testing
from hookflat.plugins import Catalogue

OPTIONS = {"early_stopping": {"holdout": 4, "every": 1}}


@pytest.mark.parametrize("plugin", Catalogue().names())
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, plugin):
    check(plugin, OPTIONS.get(plugin))
