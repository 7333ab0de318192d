"""Unlabeled data: the pool, its pseudo-labels, the mixture, and UAT's losses in float64."""

import json
from dataclasses import replace

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hookflat import UserError
from hookflat.functional.brackets import restored
from hookflat.testing import run_recipe, tiny_run
from hookflat_plugins.digits import Digits

POOL = {"unlabeled": {"share": 0.5, "fraction": 0.5}}


def softmax(z):
    e = torch.exp(z - z.max(1, keepdim=True).values)
    return e / e.sum(1, keepdim=True)


def test_the_labels_of_a_share_of_the_training_set_are_set_aside():
    with tiny_run() as plain, tiny_run({"plugins": POOL}) as run:
        assert len(run.data.train) == 12
        assert torch.equal(run.data.train.x, plain.data.train.x[:12])
        assert torch.equal(run.plugins["unlabeled"]._images.x, plain.data.train.x[12:])


def test_pseudo_labels_are_the_predictions_of_a_standard_network_on_the_labelled_images_and_are_kept(tmp_path):
    tables = {"plugins": POOL, "run": {"epochs": 3}}
    run_recipe(tables, tmp_path / "first")
    (labeler,) = [p for p in (tmp_path / "pseudo_labels").iterdir() if p.is_dir()]
    labels = load_file(labeler / "pseudo_labels.safetensors")["labels"]
    recipe = (labeler / "recipe.toml").read_text()
    assert "steps = 0" in recipe
    assert "fraction = 0.0" in recipe
    with tiny_run({"plugins": {"unlabeled": {"share": 0.5, "fraction": 0.0}}}) as run, tiny_run() as plain:
        run.network.load_state_dict(load_file(labeler / "model.safetensors"))
        with torch.no_grad():
            predicted = run.network.eval()(plain.data.train.x[12:].float() / 255).argmax(1)
    assert torch.equal(labels, predicted)
    before = (labeler / "model.safetensors").stat().st_mtime_ns
    run_recipe(tables | {"run": {"epochs": 3, "seed": 1}}, tmp_path / "second")
    assert (labeler / "model.safetensors").stat().st_mtime_ns == before  # one for all seeds
    assert len(list((tmp_path / "pseudo_labels").glob("*.lock"))) == 1


def test_the_network_that_labels_has_the_run_s_augmentation(tmp_path):
    augmentation = ("augment", "autoaugment", "randaugment", "random_resized_crop")
    run_recipe({"plugins": {name: {} for name in augmentation} | POOL}, tmp_path / "run")
    (labeler,) = [p for p in (tmp_path / "pseudo_labels").iterdir() if p.is_dir()]
    recipe = (labeler / "recipe.toml").read_text()
    assert [name for name in augmentation if f"[plugins.{name}]" in recipe] == list(augmentation)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_batches_hold_the_fraction_of_the_pool_with_its_pseudo_labels(fraction):
    with tiny_run({"plugins": {"unlabeled": {"share": 0.5, "fraction": fraction}, "label_noise": {"rate": 0}}}) as run:
        pool = run.plugins["unlabeled"]._images
        known = {image.numpy().tobytes(): int(label) for image, label in zip(pool.x, pool.y, strict=True)}
        seen = set()
        for step in range(run.steps_per_epoch):
            run.step = step
            batch = next(run.batches())
            run.hook.transform_batch(run=run, batch=batch)
            drawn = ~batch.labeled
            assert int(drawn.sum()) == int(fraction * batch.global_size)
            for x, y in zip(batch.x[drawn], batch.y[drawn], strict=True):
                key = (255 * x).round().to(torch.uint8).numpy().tobytes()
                assert known[key] == int(y)
                seen.add(key)
            assert (batch.index[drawn] == -1).all()
            assert torch.equal(batch.target, batch.y)
            own = run.data.train.x[batch.index[~drawn]].float() / 255
            assert torch.equal(batch.x[~drawn], own)
    assert len(seen) > 1


def test_augmentation_comes_after_the_pool_whatever_the_recipe_lists_first():
    """A crop that is padded by more than the image leaves most images black somewhere: pool images too."""
    tables = {"plugins": {"augment": {"padding": 6, "flip": False}, "unlabeled": {"share": 0.5, "fraction": 1.0}}}
    with tiny_run(tables) as run:
        batch = next(run.batches())
        run.hook.transform_batch(run=run, batch=batch)
        assert (batch.x == 0).flatten(1).any(1).sum() >= 6


def test_the_pool_from_a_folder(tmp_path):
    images = [Image.fromarray((torch.full((6, 6), i).to(torch.uint8)).numpy()) for i in range(30)]
    table = datasets.Dataset.from_dict({"img": images}, datasets.Features({"img": datasets.Image()}))
    table.to_parquet(tmp_path / "train.parquet")
    with tiny_run({"plugins": {"unlabeled": {"path": str(tmp_path)}}}) as run:
        assert len(run.data.train) == 24
        assert torch.equal(run.plugins["unlabeled"]._images.x[:, 0, 0, 0], torch.arange(30).to(torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "the pool is empty"),
        ({"path": "/no/such/folder"}, "plugins.unlabeled.path = '/no/such/folder' cannot be loaded"),
        ({"path": "FOLDER", "split": "extra"}, "cannot be loaded|no split 'extra'"),
        ({"path": "FOLDER"}, r"images are \(1, 5, 5\), those of \[data\] \(1, 6, 6\)"),
    ],
)
def test_wrong_pools_are_told(tmp_path, options, message):
    image = Image.fromarray(torch.zeros(5, 5).to(torch.uint8).numpy())
    table = datasets.Dataset.from_dict({"img": [image]}, datasets.Features({"img": datasets.Image()}))
    table.to_parquet(tmp_path / "train.parquet")
    options = {k: str(tmp_path) if v == "FOLDER" else v for k, v in options.items()}
    with pytest.raises(UserError, match=message), tiny_run({"plugins": {"unlabeled": options}}):
        pass


def test_examples_held_out_of_the_training_set_are_not_for_the_labelling_network():
    plugins = POOL | {"early_stopping": {"holdout": 4, "source": "train"}}
    with pytest.raises(UserError, match="would train on what early_stopping holds out"), tiny_run({"plugins": plugins}):
        pass


def test_labels_are_counted_before_weights_are_perturbed():
    """The ascent of AWP asks for the loss, too: of this step's labelled images, not of the last one's."""
    with tiny_run({"loss": {"name": "uat", "targets": "ot"}, "plugins": {"awp": {"xi": 0.1}}}) as run:
        batch = next(run.batches())
        x_adv = (batch.x + 0.1).clamp(0, 1)
        collected = []
        for before in (8, 3):  # labelled images of the step before
            run.recipe.slots["loss"]._count(run, replace(batch, labeled=torch.arange(8) < before))
            batch.labeled = torch.arange(8) < 3
            with restored(run.network.buffers()):
                run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
            collected.append([p.grad.clone() for p in run.network.parameters() if p.grad is not None])
            run.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(*collected, strict=True))


@pytest.mark.parametrize("targets", ["ft", "ot", "++"])
def test_uat_loss_and_gradient(targets):
    """No gradient flows through the clean prediction; OT asks the labelled images' labels alone."""
    with tiny_run({"loss": {"name": "uat", "targets": targets, "weight": 3.0}}) as run:
        batch = next(run.batches())
        run.network.double()
        batch.x, x_adv = batch.x.double(), (batch.x.double() + 0.1).clamp(0, 1)
        batch.labeled = torch.arange(8) < 3
        ours = run.loss(batch, x_adv)
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        rows = torch.arange(8)
        divergence = (p.detach() * torch.log(p.detach() / q)).sum(1).mean()
        expected = {
            "ft": -torch.log(q[rows, batch.y]).mean(),
            "ot": -torch.log(p[rows, batch.y])[:3].mean() + 3 * divergence,
            "++": -torch.log(q[rows, batch.y]).mean() + 3 * divergence,
        }[targets]
        weights = list(run.network.parameters())
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
            assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("targets", ["ft", "ot", "++"])
def test_uat_attacks_what_it_trains(targets):
    with tiny_run({"loss": {"name": "uat", "targets": targets, "weight": 3.0}}) as run:
        batch = next(run.batches())
        x_adv = (batch.x + 0.05).clamp(0, 1)
        objective = run.hook.attack_objective(run=run, batch=batch)
        run.network.eval()
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        divergence = (p * torch.log(p / q)).sum(1)
        ce = -torch.log(q[torch.arange(8), batch.y])
        expected = divergence if targets == "ot" else ce  # "++" is attacked by the cross-entropy alone
        assert torch.allclose(objective(run.attack_model, x_adv), expected, atol=1e-5)


def test_a_run_with_a_pool_says_where_its_labels_come_from(tmp_path, capsys):
    from hookflat.testing import TinyData, TinyModel, recipe
    from hookflat.training.entry import run

    run(recipe({"plugins": POOL}), folder=tmp_path / "r", plugins=[TinyData, TinyModel], quiet=False)
    said = capsys.readouterr().out
    assert "training a standard network on 12 labelled images" in said
    assert "pseudo-labels: 12 images, by the network in" in said
    results = json.loads((tmp_path / "r" / "eval.json").read_text())
    assert results["recipe"] == "recipe"


def test_the_pool_is_what_the_recipe_leaves_of_the_training_split():
    tables = {"data": {"name": "digits", "train": 300, "test": 700}, "plugins": {"unlabeled": {"images": 5}}}
    with tiny_run(tables | {"run": {"epochs": 1}}) as run:
        whole = Digits(train=305, test=700).build_data().train
        assert len(run.data.train) == 300
        assert torch.equal(run.plugins["unlabeled"]._images.x, whole.x[300:])
