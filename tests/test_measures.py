"""Early stopping and the measures of a run, against the library's functions."""

import json
import signal
import types

import pytest
import torch
from safetensors.torch import load_file

import hookflat
from hookflat import UserError
from hookflat.errors import Stopped
from hookflat.functional import flatness
from hookflat.functional.brackets import full_float32
from hookflat.functional.examples import Examples
from hookflat.records.folder import RunFolder
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import subject

STOPPING = {"plugins": {"early_stopping": {"holdout": 4, "every": 2, "steps": 2, "restarts": 2}}}


def records(folder, stage):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def test_candidates_are_the_first_epoch_every_so_many_after_it_and_the_last(tmp_path):
    result = run_recipe(STOPPING | {"run": {"epochs": 6}}, tmp_path / "run")
    assert [r["epoch"] for r in records(result.folder, "early_stopping")] == [1, 3, 5, 6]


def test_the_paper_s_candidates():
    """Snapshots after epochs 1, 6, ..., 146 and the final one, of 150."""
    with tiny_run({"plugins": {"early_stopping": {"holdout": 4}}, "run": {"epochs": 150}}) as run:
        plugin, due = run.plugins["early_stopping"], []
        run.subject = lambda split: due.append(run.epoch) or _Held()
        for run.epoch in range(1, 151):
            plugin.epoch_end(run)
        assert due == [*range(1, 150, 5), 150]


class _Held:
    def robust(self, steps, restarts):
        return types.SimpleNamespace(error=0.5, loss=1.0)

    robust_error = robust


@pytest.mark.parametrize("by", ["rerr_pgd", "rloss"])
def test_the_smallest_wins_the_earliest_on_ties_and_its_weights_are_kept(tmp_path, by):
    tables = {"plugins": {"early_stopping": STOPPING["plugins"]["early_stopping"] | {"by": by, "every": 1}}}
    result = run_recipe(tables | {"run": {"epochs": 5}}, tmp_path / "run")
    values = [r[by] for r in records(result.folder, "early_stopping")]
    best = values.index(min(values)) + 1
    weights, about = RunFolder(result.folder).load_network("best")
    assert about["epoch"] == best
    assert result.results.models["best"].epoch == best
    with tiny_run(tables | {"run": {"epochs": 5}}) as run:
        from hookflat.training import loop

        while run.epoch < best:
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
        for name, value in run.network.state_dict().items():
            assert value.equal(weights[name]), name


def test_no_reported_number_uses_the_held_out_examples():
    with tiny_run(STOPPING) as run:
        assert (len(run.data.test), len(run.data.holdout)) == (8, 4)
        subject = run.measurements.subject(run.network, "test", 1000)
        assert len(subject.examples) == 8
    source = {"plugins": {"early_stopping": {"holdout": 4, "source": "train"}}}
    with tiny_run(source) as run:
        assert (len(run.data.train), len(run.data.test)) == (20, 12)
    with (
        pytest.raises(UserError, match=r"plugins\.early_stopping\.holdout: cannot hold out 12 of 12"),
        tiny_run({"plugins": {"early_stopping": {"holdout": 12}}}),
    ):
        pass


def test_the_final_measures_are_those_of_the_library(tmp_path):
    tables = {
        "eval": {
            "final": {"splits": ["train", "test"], "robust_loss": {"steps": 3, "restarts": 2}},
            "flat": {"average_flatness": {"xi": 0.3, "samples": 2, "steps": 3, "reference_restarts": 2}},
        }
    }
    result = run_recipe(tables, tmp_path / "run")
    with tiny_run(tables) as run:
        run.network.load_state_dict(load_file(result.folder / "model.safetensors"))
        attack = {"eps": 0.1, "step_size": 0.05, "steps": 3, "seed": 0}
        for split in ("train", "test"):
            reported = getattr(result.results.models["last"], split)
            robust = hookflat.robust_loss(run.network, Examples(getattr(run.data, split)), restarts=2, **attack)
            assert reported["rloss"] == pytest.approx(robust.loss, abs=1e-6)
            assert reported["rerr_pgd"] == robust.error
            assert reported["clean_error"] == robust.clean_error
        flat = hookflat.average_flatness(
            run.network, Examples(run.data.test), xi=0.3, samples=2, reference_restarts=2, **attack
        )
        assert reported["average_flatness"] == pytest.approx(flat.flatness, abs=1e-5)
        gap = result.results.models["last"].gap["rloss"]
        assert gap == reported["rloss"] - result.results.models["last"].train["rloss"]


def test_two_measures_with_one_name_are_an_error(tmp_path):
    from dataclasses import dataclass

    @dataclass(eq=False)
    class Again:
        @hookflat.hookimpl
        def measure(self):
            return {"clean_error": 0.0}

    with pytest.raises(UserError, match="two measures return 'clean_error'"):
        run_recipe({"eval": {"final": {"again": {}}}}, tmp_path / "run", [Again])


def test_a_recipe_may_ask_for_any_measure_at_the_end_during_training_or_of_the_best(tmp_path):
    tables = {
        "plugins": {"early_stopping": {"holdout": 3, "every": 1, "steps": 1, "restarts": 1}},
        "eval": {
            "through": {
                "every": 1,
                "worst_flatness": {"attempts": 1, "sweeps": 1, "steps": 1, "reference_restarts": 1},
            },
            "only_best": {"models": ["best"], "relative_flatness": {"steps": 1}},
            "both": {"sharpness": {"steps": 1}},
        },
    }
    result = run_recipe(tables, tmp_path / "run")
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["stage"] == "through" and "worst_flatness" in line]) == 2
    models = result.results.models
    assert "relative_flatness_robust" in models["best"].test
    assert "relative_flatness_robust" not in models["last"].test
    assert all("sam_sharpness_robust" in models[m].test for m in ("last", "best"))


def test_the_reference_is_computed_once_for_all_radii_and_measures_of_a_network(tmp_path, monkeypatch):
    """Also where the worst case asks after the average case, and the robust loss itself before both."""
    computed = []

    def counting(model, loader, **options):
        computed.append((options["attack"].steps, options["attack"].restarts))
        return hookflat.robust_loss(model, loader, **options)

    monkeypatch.setattr(subject, "robust_loss", counting)
    monkeypatch.setattr(flatness, "robust_loss", counting)
    reference = {"steps": 2, "reference_restarts": 2}
    final = {
        "clean_error": {},
        "robust_loss": {"steps": 2, "restarts": 2},
        "average_flatness": {"xi": [0.1, 0.3], "samples": 1, **reference},
        "worst_flatness": {"attempts": 1, "sweeps": 1, **reference},
    }
    run_recipe({"eval": {"curves": {"every": 2}, "final": final}}, tmp_path / "run")
    assert computed == [(2, 1), (0, 0), (2, 2)]  # the curves' after the last epoch, then the final stage's


def test_final_measures_cut_off_by_a_kill_are_not_taken_again(tmp_path, monkeypatch):
    from hookflat.functional.work import Work

    tables = {"eval": {"final": {"robust_loss": {"steps": 2, "restarts": 2}, "sharpness": {"steps": 2}}}}
    whole = run_recipe(tables, tmp_path / "whole")
    once, computed, stopped = Work.once, [], []

    def cut(self, name, compute, together=None):
        if name == "sharpness" and not stopped:
            stopped.append(name)
            computed.clear()
            raise Stopped(signal.SIGINT)

        def recorded():
            computed.append(name)
            return compute()

        return once(self, name, recorded if self.folder else compute, together)

    monkeypatch.setattr(Work, "once", cut)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tables, tmp_path / "cut")
    resumed = run_recipe(tables, tmp_path / "cut")
    assert set(computed) == {"sharpness"}
    assert resumed.results.models["last"].test == whole.results.models["last"].test


def test_measures_keep_to_float32_and_leave_the_setting_as_it_was():
    """Also where a user chose by torch's newer setting, which the older one cannot be mixed with."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        conv.fp32_precision, matmul.fp32_precision = "tf32", "ieee"
        with full_float32():
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "ieee")
    finally:
        conv.fp32_precision, matmul.fp32_precision = before
