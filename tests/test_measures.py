"""Early stopping and the measures of a run, against the library's functions."""

import json
import signal
import types
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

import hookflat
from hookflat import UserError
from hookflat.errors import Stopped
from hookflat.functional import examples, flatness
from hookflat.functional.brackets import full_float32
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.records.folder import RunFolder
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import subject
from hookflat.training.cost import counted

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
    assert computed == [(0, 0), (2, 1), (0, 0), (2, 2)]  # the curves' after the last epoch, then the final stage's


def test_the_bar_foresees_every_search_once_whoever_asks_first():
    reference = {"steps": 2, "reference_restarts": 3}
    stages = {
        "flat": {"average_flatness": {"samples": 2, **reference}, "filter_flatness": {"samples": 1, **reference}},
        "final": {
            "robust_loss": {"steps": 2, "restarts": 3},
            "worst_flatness": {"attempts": 2, "sweeps": 4, **reference},
        },
    }
    with tiny_run({"eval": stages}) as run:
        run.measurements.end(run.network, "last")
        done, foreseen = run.measurements.tally.passes, run.measurements.planned("last")
    assert sum(passes for *_, passes in foreseen) == done


def test_the_best_epoch_is_known_without_a_look_at_the_weights(monkeypatch):
    with tiny_run() as run:
        assert run.best_epoch is None
        run.epoch = 3
        run.keep_best()
        monkeypatch.setattr("hookflat.records.weights.load_file", None)
        assert run.best_epoch == 3


ESTIMATED = {"autoattack", "hessian", "multi_norm", "trust"}
"""Measures that drop what is broken, or iterate until something is found."""
BRIEF = {
    "adaptive_sharpness": {"samples": 2, "iterations": 3, "steps": 2},
    "clean_average_flatness": {"samples": 2},
    "average_flatness": {"samples": 2, "steps": 2, "reference_restarts": 2},
    "filter_flatness": {"samples": 2, "steps": 2, "reference_restarts": 2},
    "worst_flatness": {"attempts": 2, "sweeps": 3, "reference_restarts": 1},
    "clean_worst_flatness": {"attempts": 2, "sweeps": 3},
    "hessian_density": {"probes": 2, "lanczos_steps": 3, "steps": 2},
    "landscape": {"directions": 2, "points": 3, "steps": 2},
    "landscape_2d": {"points": 3, "steps": 2},
}


@pytest.mark.parametrize(
    "name", [s.name for s in Catalogue() if kind_of(s.load()) == "measure" and s.name not in ESTIMATED]
)
def test_measures_make_the_passes_that_they_foresee_and_tell_of_each(name, monkeypatch):
    monkeypatch.setattr(examples, "classes_of", lambda model, x: 3)  # which asks for one image's logits
    final = {"splits": ["test"], "clean_error": {"enabled": False}, name: BRIEF.get(name, {})}
    with tiny_run({"eval": {"final": final}}) as run:
        with counted() as passes:
            run.measurements.end(run.network, "last")
        ((*_, foreseen),) = run.measurements.planned("last")
        assert run.measurements.tally.passes == foreseen
        assert 0 <= passes.total - foreseen < len(run.data.test)  # flatness tries its gradients on a few images


def test_the_images_are_hashed_once_however_many_networks_are_measured(monkeypatch):
    hashed, content = [], Images.content
    monkeypatch.setattr(Images, "content", lambda images: hashed.append(images) or content(images))
    with tiny_run({}) as run:
        for label in ("last", "best"):
            run.measurements.end(run.network, label)
        assert hashed == [run.data.train, run.data.test]


def test_stages_through_the_training_that_are_due_together_share_what_they_measure(tmp_path, monkeypatch):
    computed = []

    def counting(model, loader, **options):
        computed.append((len(loader), options["attack"].restarts))
        return hookflat.robust_loss(model, loader, **options)

    monkeypatch.setattr(subject, "robust_loss", counting)
    flat = {"samples": 1, "steps": 2, "reference_restarts": 1}
    run_recipe(
        {
            "eval": {
                "curves": {"every": 1, "splits": ["test"], "robust_loss": {"steps": 2, "restarts": 1}},
                "through": {"every": 2, "splits": ["test"], "average_flatness": flat},
                "fewer": {"every": 2, "splits": ["test"], "examples": 5, "filter_flatness": flat},
            }
        },
        tmp_path / "run",
    )
    whole, few = [(12, 0), (12, 1)], [(5, 0), (5, 1)]
    assert computed == whole + whole + few + [(12, 0)]  # after the first epoch, after the second, and at the end


def test_the_clean_pass_is_made_once_for_all_measures_of_a_network(tmp_path, short_autoattack):
    """Of clean images go through the network: each once, to be scored, and one to see the number of classes."""
    with tiny_run({"eval": {"final": {"clean_error": {}, "robust_loss": {}, "autoattack": {}}}}) as run:
        clean, scored = run.data.test.x.float() / 255, []
        handle = run.network.register_forward_hook(
            lambda net, args, out: scored.append(len(args[0]) if torch.equal(args[0], clean[: len(args[0])]) else 0)
        )
        measured = run.measurements.end(run.network, "last").test
        handle.remove()
    assert {"clean_error", "rerr_pgd", "rerr_autoattack"} <= measured.keys()
    assert scored.count(len(clean)) == 1


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


FP32 = torch.backends.cudnn.conv, torch.backends.cuda.matmul


@pytest.fixture
def tf32():
    """Chosen for convolutions and matrix products: on a CPU a setting without a consequence."""
    before = [backend.fp32_precision for backend in FP32]
    for backend in FP32:
        backend.fp32_precision = "tf32"
    yield
    for backend, value in zip(FP32, before, strict=True):
        backend.fp32_precision = value


def settings_seen(net):
    """Of float32 in every pass of the network from now on."""
    seen = []
    net.register_forward_hook(lambda *_: seen.append({backend.fp32_precision for backend in FP32}))
    return seen


MEASURES = {
    "robust_loss": {},
    "robust_error": {},
    "average_flatness": {"samples": 1},
    "worst_flatness": {"attempts": 1, "sweeps": 1},
    "landscape": {"directions": 1, "points": 1},
    "sharpness": {},
    "worst_sharpness": {"iterations": 1},
    "average_sharpness": {"samples": 1},
    "relative_flatness": {},
    "hessian_trace": {"samples": 1},
    "hessian_eigenvalues": {"k": 1, "tolerance": 1.0},
    "hessian_density": {"probes": 1, "lanczos_steps": 1},
    "flatness_along_attack": {"samples": 1},
    "margins": {},
    "input_gradients": {},
    "local_lipschitz": {},
    "boundary_thickness": {"points": 2},
    "trust": {"queries": 0},
    "autoattack": {"version": "custom", "attacks": ["apgd-ce"]},
}


@pytest.mark.usefixtures("tf32", "short_autoattack")
@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_of_the_library_keeps_to_float32(name):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    seen = settings_seen(net)
    steps = {} if name in ("autoattack", "boundary_thickness") else {"steps": 1}
    getattr(hookflat, name)(net, (torch.rand(6, 1, 4, 4), torch.arange(6) % 3), **steps, **MEASURES[name])
    assert seen
    assert all(setting == {"ieee"} for setting in seen)
    assert {backend.fp32_precision for backend in FP32} == {"tf32"}


@pytest.mark.usefixtures("tf32")
def test_early_stopping_measures_in_float32_and_attacks_of_the_training_do_not():
    with tiny_run(STOPPING) as run:
        seen = settings_seen(run.network)
        run.epoch = 1
        run.plugins["early_stopping"].epoch_end(run)
        assert {"ieee"} in seen
        assert {"tf32"} not in seen
        seen.clear()
        hookflat.pgd(run.network, *run.data.test.__getitems__(torch.arange(4)), steps=1)
        assert seen
        assert all(setting == {"tf32"} for setting in seen)


@pytest.mark.usefixtures("tf32")
def test_every_measure_of_a_stage_is_called_in_float32():
    @dataclass(eq=False)
    class Looks:
        @hookflat.hookimpl
        def measure(self):
            return {backend.fp32_precision: 1.0 for backend in FP32}

    with tiny_run({"eval": {"final": {"looks": {}}}}, [Looks]) as run:
        assert run.measurements.end(run.network, "last").test.keys() - {"clean_error", "clean_loss"} == {"ieee"}


def test_measures_keep_to_float32_inside_autocast(digits_net, digits_pair):
    options = {"steps": 2, "restarts": 1, "eps": 0.1, "seed": 0}
    alone = hookflat.robust_loss(digits_net, digits_pair, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert hookflat.robust_loss(digits_net, digits_pair, **options).loss == alone.loss
        assert torch.is_autocast_enabled("cpu")


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
