"""Recipes that are older than some of their options: those have their defaults, and nothing else is changed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.defaults import differences, with_defaults
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import recipes_folder
from hookflat.recipe.tables import flat

SHIPPED = sorted(path.stem for path in recipes_folder().glob("*.toml"))


def without(tables, place):
    """A copy that lacks the value at a place."""
    head, *rest = place
    if not rest:
        return {key: value for key, value in tables.items() if key != head}
    return tables | {head: without(tables[head], rest)}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_a_resolved_recipe_has_stays(name):
    tables = load_recipe(name).tables
    assert with_defaults(tables, catalogue_of()) == tables


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_an_older_recipe_lacks_is_no_difference_where_it_is_the_default(data):
    tables = load_recipe("trades").tables
    places = [place for place, value in flat(tables) if place[-1] != "name" and value != {}]
    place = data.draw(st.sampled_from(places))
    older = without(tables, place)
    filled = dict(flat(with_defaults(older, catalogue_of())))
    then, now = filled.get(place, "nothing"), dict(flat(tables))[place]
    told = differences(older, tables, catalogue_of())
    assert told == ([] if then == now else [f"{'.'.join(place)}: {then} in the folder, {now} now"])


def test_defaults_are_those_of_the_plugin():
    older = {"loss": {"name": "trades"}, "attack": {"name": "pgd", "steps": 3}, "eval": {"final": {"robust_loss": {}}}}
    filled = with_defaults(older, catalogue_of())
    assert list(filled["loss"].items()) == [("name", "trades"), ("beta", 6.0)]  # as a report shows it
    assert filled["attack"]["steps"] == 3
    assert filled["attack"]["cycle_detection"] is False
    assert filled["eval"]["final"]["robust_loss"]["restarts"] == 10
    assert filled["eval"]["final"]["take"] == "first"


def test_a_plugin_that_is_not_here_keeps_its_table():
    older = {"loss": {"name": "of_another_package", "beta": 3.0}, "plugins": {"gone": {"rate": 1.0}}}
    assert with_defaults(older, catalogue_of()) == older
