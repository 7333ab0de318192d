import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hookflat
from hookflat import TrainingFailed, hookimpl
from hookflat.functional import seeds
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import loop


def test_a_run_equals_a_training_written_by_hand():
    """AT with PGD-2 on the tiny data, six steps: plain PyTorch, no hooks, no views."""
    with tiny_run() as run:
        conv, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        net = nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        state = {k.removeprefix("net."): v.clone() for k, v in run.network.state_dict().items() if k.startswith("net.")}
        state["1.weight"] = state["1.weight"] + 1
        net.load_state_dict(state)
        mean, std = run.data.train.statistics()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        run.optimizer.param_groups[0]["weight_decay"] = (
            0.0  # the norm's weight is shifted by 1, and so decays elsewhere
        )

        def f(x):
            return net((x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))

        for epoch in range(2):
            order = torch.randperm(24, generator=seeds.generator(0, "order", epoch))
            for i in range(3):
                step = 3 * epoch + i
                index = order[8 * i : 8 * i + 8]
                x, y = run.data.train.x[index].float() / 255, run.data.train.y[index]
                net.eval()
                options = {"eps": 0.1, "step_size": 0.05, "steps": 2, "seed": seeds.derive_seed(0, "attack", step)}
                wrapped = nn.Module()
                wrapped.net, wrapped.forward = net, f
                x_adv = hookflat.pgd(wrapped, x, y, **options)
                net.train()
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * 0.1 ** sum(step >= round(m * 6) for m in (0.4, 0.6, 0.8))
                optimizer.zero_grad()
                nn.functional.cross_entropy(f(x_adv), y).backward()
                optimizer.step()
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
        ours = {k.removeprefix("net."): v for k, v in run.network.state_dict().items()}
        for name, theirs in net.state_dict().items():
            offset = 1 if name == "1.weight" else 0
            assert torch.allclose(ours[name] + offset, theirs, atol=1e-5), name


def test_gradients_for_perturbations_are_handed_over_and_not_copied():
    """Also where the optimizer forgets gradients by writing zeros over them."""
    with tiny_run() as run:
        batch = next(run.batches())
        weights = [*run.network.parameters(), nn.Parameter(torch.ones(2))]
        run.zero_grad = lambda: [p.grad.zero_() for p in weights if p.grad is not None]
        run.loss_and_gradients(batch, batch.x)
        expected = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
        run.optimizer.zero_grad()
        places = {}
        for w in weights:
            w.register_post_accumulate_grad_hook(lambda w: places.update({id(w): w.grad.data_ptr()}))
        gradients = run.gradients_at(batch, batch.x, weights)
        assert all(w.grad is None for w in weights)
        assert [places[id(w)] for w in weights[:-1]] == [g.data_ptr() for g in gradients[:-1]]
        for gradient, value in zip(gradients, expected, strict=True):
            assert torch.allclose(gradient, value, atol=1e-6)
        assert gradients[0].any()


def test_a_training_that_stands_at_its_last_step_makes_no_other():
    with tiny_run() as run:
        assert not loop.train(run, max_steps=2)
        before = [p.clone() for p in run.network.parameters()]
        assert not loop.train(run, max_steps=2)
        assert run.step == 2
        assert all(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))


def test_epochs_see_every_example_once_in_a_new_order():
    with tiny_run({"data": {"train": 21}}) as run:
        seen = []
        for run.epoch in range(2):
            run.step = run.epoch * run.steps_per_epoch
            seen.append(torch.cat([b.index for b in run.batches()]).tolist())
        assert [sorted(s) for s in seen] == [list(range(21))] * 2
        assert seen[0] != seen[1]
        run.epoch, run.step = 0, 2  # after two of three batches
        assert torch.cat([b.index for b in run.batches()]).tolist() == seen[0][16:]


def test_a_run_leaves_the_folder_of_the_design(tmp_path):
    result = run_recipe({"plugins": {"averaging": {}, "early_stopping": {"holdout": 3, "every": 1}, "figures": {}}},
                        tmp_path / "run")  # fmt: skip
    files = {str(p.relative_to(result.folder)) for p in result.folder.rglob("*") if p.is_file()}
    assert files >= {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "eval.json",
        "model.safetensors",
        "model_in_training.safetensors",
        "checkpoints/best.safetensors",
        "figures/overfitting.png",
        "figures/overfitting.svg",
    }
    assert not any("writing" in name for name in files)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"training", "curves", "early_stopping"}
    assert all({"epoch", "step", "split"} <= line.keys() for line in lines)
    results = json.loads((result.folder / "eval.json").read_text())
    assert results["models"].keys() == {"last", "best"}
    assert results["protocol"]["stages"]["final"]["examples"] == {"test": 9}
    assert results["models"]["last"]["seconds"].keys() == {"test/clean_error"}
    again = hookflat.run(result.folder / "recipe.toml", folder=tmp_path / "again", plugins=_tiny())
    assert again.results.models["last"].test == results["models"]["last"]["test"]


def _tiny():
    from hookflat.testing import TinyData, TinyModel

    return [TinyData, TinyModel]


def test_library_runs_leave_the_global_generators_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    run_recipe({}, tmp_path / "run")
    assert torch.equal(before, torch.random.get_rng_state())


@dataclass(eq=False)
class Explodes:
    """A loss that turns NaN in step 5."""

    @hookimpl
    def loss(self, run, batch, x_adv):
        loss = run.criterion(run.model(x_adv), batch.target).mean()
        return loss * float("nan") if run.step == 4 else loss


@dataclass(eq=False)
class Raises:
    """Fails in its second step."""

    @hookimpl
    def transform_batch(self, run):
        if run.step == 1:
            raise KeyError("no such thing")


def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(TrainingFailed) as caught:
        run_recipe({"loss": {"name": "explodes"}, "run": {"epochs": 4}}, tmp_path / "run", [Explodes])
    assert "hook 'loss' (plugin 'explodes') in step 5 of 12 (epoch 2)" in str(caught.value)
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert checkpoint.name == "step-000000003-epoch-000001"


def test_weights_that_turn_nan_never_reach_a_checkpoint(tmp_path):
    @dataclass(eq=False)
    class Spoils:
        @hookimpl
        def after_step(self, run):
            if run.step == 3:
                next(run.network.parameters()).data.fill_(float("nan"))

    tables = {"plugins": {"spoils": {}}, "run": {"checkpoint_steps": 1}}
    with pytest.raises(TrainingFailed, match=r"the result of hook 'after_step' in step 3 "):
        run_recipe(tables, tmp_path / "run", [Spoils])
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert checkpoint.name == "step-000000002-epoch-000000"
    assert all(t.isfinite().all() for t in load_file(checkpoint / "model.safetensors").values())


def test_a_plugin_that_raises_is_named_with_its_hook(tmp_path):
    with pytest.raises(TrainingFailed, match="plugin 'raises' failed in hook 'transform_batch': KeyError"):
        run_recipe({"plugins": {"raises": {}}}, tmp_path / "run", [Raises])


def test_a_drawing_that_fails_loses_no_result(tmp_path):
    @dataclass(eq=False)
    class Smears:
        @hookimpl
        def draw(self):
            if not (tmp_path / "mended").exists():
                raise OSError("no ink")

    tables = {"plugins": {"smears": {}, "figures": {}}}
    with pytest.raises(TrainingFailed, match="plugin 'smears' failed in hook 'draw'"):
        run_recipe(tables, tmp_path / "run", [Smears])
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["models"]
    (tmp_path / "mended").touch()
    run_recipe(tables, tmp_path / "run", [Smears])
    assert (tmp_path / "run" / "figures" / "overfitting.png").exists()


def test_a_wrapper_that_forgets_its_result_is_told(tmp_path):
    @dataclass(eq=False)
    class Forgets:
        @hookimpl(wrapper=True)
        def gradients(self):
            yield

    with pytest.raises(TrainingFailed, match="does a wrapper lack `return"):
        run_recipe({"plugins": {"forgets": {}}}, tmp_path / "run", [Forgets])


def test_extra_losses_are_added_and_criteria_replace_the_cross_entropy():
    @dataclass(eq=False)
    class Penalty:
        @hookimpl
        def extra_loss(self, run):
            return 0.5 * sum(p.square().sum() for p in run.network.parameters())

    @dataclass(eq=False)
    class Smoothing:
        @hookimpl
        def criterion(self, logits, target):
            return nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.2)

    with tiny_run({"plugins": {"penalty": {}, "smoothing": {}}}, [Penalty, Smoothing]) as run:
        batch = next(run.batches())
        expected = nn.functional.cross_entropy(run.network(batch.x), batch.y, label_smoothing=0.2)
        expected = expected + 0.5 * sum(p.square().sum() for p in run.network.parameters())
        assert run.loss(batch, batch.x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_training_runs_and_keeps_float32_weights(tmp_path):
    with tiny_run({"run": {"precision": "bf16"}}) as run:
        for batch in run.batches():
            loop.step(run, batch)
        assert all(p.dtype == torch.float32 for p in run.network.parameters())
        assert run.model(batch.x).dtype == torch.float32


def test_draws_are_named_and_follow_the_step():
    with tiny_run() as run:
        a = torch.rand(3, generator=run.rng("a"))
        more = torch.rand(3, generator=run.rng("a"))
        b = torch.rand(3, generator=run.rng("b"))
        run.step = 1
        later = torch.rand(3, generator=run.rng("a"))
        run.step = 0
        again = torch.rand(3, generator=run.rng("a"))
        assert torch.equal(a, again)
        assert len({tuple(t.tolist()) for t in (a, more, b, later)}) == 4
