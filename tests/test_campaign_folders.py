"""A few of the campaign's damaged folders."""

import random

from campaign.test_folders import TRAINED, begun, cases, finished, read, reported, resumed

from hookflat.testing import run_recipe


def test_a_damaged_run_that_was_stopped_goes_on_or_names_the_file(tmp_path, monkeypatch):
    rng = random.Random(3)
    whole = run_recipe(TRAINED, tmp_path / "whole").folder
    source = begun(tmp_path / "begun", monkeypatch)
    newest = max(source.glob("checkpoints/step-*/model.safetensors")).relative_to(source)
    for number, (file, damage) in enumerate([(newest, "flipped"), *cases(source, rng, 3)]):
        assert resumed(source, file, damage, tmp_path / str(number), rng, whole) == []


def test_a_damaged_run_that_was_finished_is_read_or_named(tmp_path):
    rng = random.Random(0)
    source, protocol = finished(tmp_path / "source", tmp_path)
    chosen = cases(source, rng, 40)
    for number, (file, damage) in enumerate(chosen[:4]):
        assert read(source, file, damage, tmp_path / str(number), rng, protocol) == []
    assert reported(source, chosen, tmp_path / "many", rng) == []
