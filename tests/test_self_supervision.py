"""Rotation prediction: the turned images, their attack, the second head, the loss."""

import pytest
import timm
import torch
from scipy import stats
from torch import nn

from hookflat import UserError
from hookflat.functional.attack_view import AttackView
from hookflat.functional.layers import AuxiliaryHead, Normalized, auxiliary_logits
from hookflat.hookspecs import hookimpl
from hookflat.testing import tiny_run
from hookflat.training import loop
from hookflat_plugins.self_supervision import _classifier

TURNING = {"plugins": {"self_supervision": {"weight": 4.0}}}


def stepped(run):
    """A batch through transform and attack; returns it with x_adv and the turned images before theirs."""
    batch = next(run.batches())
    run.hook.transform_batch(run=run, batch=batch)
    turned = batch.beside.x.clone()
    objective = run.hook.attack_objective(run=run, batch=batch)
    return batch, run.hook.craft(run=run, batch=batch, objective=objective), turned


@pytest.mark.parametrize(("share", "turned"), [(0.5, 4), (0.25, 2), (0.75, 6)])
def test_a_share_of_the_batch_gives_way_to_turned_training_images(share, turned):
    with tiny_run({"plugins": {"self_supervision": {"share": share}}}) as run:
        for run.step in range(3):
            batch, x_adv, turned_x = stepped(run)
            assert len(batch.x) == len(batch.y) == len(batch.target) == len(batch.index) == len(x_adv) == 8 - turned
            assert batch.global_size == 8 - turned
            assert batch.row.tolist() == list(range(8 - turned))
            assert torch.equal(batch.x, run.data.train.x[batch.index].float() / 255)
            for x, angle, index in zip(turned_x, batch.beside.y, batch.beside.index, strict=True):
                original = run.data.train.x[index].float() / 255
                assert torch.equal(x, torch.rot90(original, int(angle), (1, 2)))


def test_angles_and_images_are_drawn_uniformly():
    angles, images = torch.zeros(4), torch.zeros(24)
    with tiny_run(TURNING) as run:
        plugin = run.plugins["self_supervision"]
        batches = [next(run.batches()) for _ in range(400)]
        for run.step, batch in enumerate(batches):
            turned = plugin._split(run, batch)
            angles += torch.bincount(turned.y, minlength=4)
            images += torch.bincount(turned.index, minlength=24)
    assert stats.chisquare(angles.numpy()).pvalue > 1e-3
    assert stats.chisquare(images.numpy()).pvalue > 1e-3


def test_turned_images_are_attacked_by_the_rotation_loss_inside_the_ball():
    with tiny_run(TURNING | {"attack": {"eps": 0.2, "step_size": 0.05, "steps": 6}}) as run:
        batch, _, x = stepped(run)
        x_adv, angle = batch.beside.x, batch.beside.y
        assert (x_adv - x).abs().max() <= 0.2 + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        losses = []
        run.network.eval()
        for images in (x, x_adv):
            losses.append(nn.functional.cross_entropy(auxiliary_logits(run.network, images), angle).item())
        assert losses[1] > losses[0] + 0.05


def test_the_loss_adds_the_mean_rotation_loss_with_its_weight():
    with tiny_run(TURNING) as run:
        batch, x_adv, _ = stepped(run)
        run.network.double()
        batch.x, x_adv, batch.beside.x = batch.x.double(), x_adv.double(), batch.beside.x.double()
        ours = run.loss(batch, x_adv)
        features = {}
        head = next(m for m in run.network.modules() if isinstance(m, AuxiliaryHead))
        handle = head.register_forward_pre_hook(lambda module, args: features.update(last=args[0]))
        labels = nn.functional.cross_entropy(run.network(x_adv), batch.y)
        run.network(batch.beside.x)
        handle.remove()
        z = head.head(features["last"]).float()
        rotation = -torch.log_softmax(z, 1)[torch.arange(len(z)), batch.beside.y].mean()
        assert ours.item() == pytest.approx((labels + 4 * rotation).item(), abs=1e-6)


def test_augmentation_reaches_the_turned_images_too():
    tables = {"plugins": {"augment": {"padding": 6, "flip": False}, "self_supervision": {}}}
    with tiny_run(tables) as run:
        *_, turned = stepped(run)
        assert (turned == 0).flatten(1).any(1).sum() >= 3


def test_turned_images_are_split_with_the_batch():
    """Half of the batch at a time: the same gradients, and no turned image goes through the network more than once."""
    gradients, counts = [], []
    for accumulation in (1, 2):
        plugins = {"self_supervision": {"weight": 4.0, "hidden": 0}}
        tables = {"plugins": plugins, "model": {"norm": "group"}, "run": {"accumulation": accumulation}}
        with tiny_run(tables) as run:
            passed = []
            hook = run.network.register_forward_pre_hook(lambda _, x, passed=passed: passed.append(len(x[0])))
            loop.step(run, next(run.batches()))
            hook.remove()
            gradients.append([p.detach().clone() for p in run.network.parameters()])
            counts.append(passed)
    assert set(counts[0]) == {4}
    assert counts[1] == [2] * 2 * len(counts[0])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_running_statistics_are_those_of_the_upright_images():
    """A mixture of both would be neither's when the classifier is evaluated; the head's are the turned images'."""
    with tiny_run(TURNING) as run:
        batch, x_adv, _ = stepped(run)
        norm = run.network.net[1]
        head = next(m for m in run.network.modules() if isinstance(m, AuxiliaryHead))
        before = [b.clone() for b in (norm.running_mean, head.head[2].running_mean)]
        run.loss(batch, x_adv)
        x = run.network.net[0]((x_adv - run.network.mean) / run.network.std).transpose(0, 1).flatten(1)
        assert torch.allclose(norm.running_mean, 0.9 * before[0] + 0.1 * x.mean(1), atol=1e-6)
        assert norm.num_batches_tracked == 1
        assert norm.momentum == 0.1
        assert not torch.equal(head.head[2].running_mean, before[1])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnetv2_18d"])
def test_a_second_head_on_timms_networks(name):
    if not timm.is_model(name):
        pytest.skip(f"timm has no {name}")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10)
    size = net.pretrained_cfg["input_size"][-1] if "vit" in name else 64
    net = Normalized(net, torch.zeros(3), torch.ones(3))
    parent, attribute, classifier = _classifier(net)
    assert classifier.weight.shape[0] == 10
    before = net.eval()(x := torch.rand(2, 3, size, size))
    setattr(parent, attribute, AuxiliaryHead(classifier, nn.Linear(classifier.weight.shape[1], 4)))
    assert torch.equal(net(x), before)
    assert auxiliary_logits(net, x).shape == (2, 4)
    view = AttackView(net)
    for _ in range(2):  # its first batch is also checked against the unfolded network
        assert torch.allclose(auxiliary_logits(view, x), auxiliary_logits(net, x), atol=1e-4)
    assert torch.allclose(view(x), before, atol=1e-3)


def test_networks_without_a_linear_classifier_and_oblong_images_are_refused():
    class NoClassifier:
        @hookimpl
        def build_model(self):
            return nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten())

    from dataclasses import dataclass

    with (
        pytest.raises(UserError, match="no linear classifier"),
        tiny_run(TURNING | {"model": {"name": "no_classifier"}}, [dataclass(eq=False)(NoClassifier)]),
    ):
        pass


def test_a_share_that_leaves_too_few_images_is_refused():
    with (
        pytest.raises(
            UserError, match=r"share = 0.1 leaves less than two turned .* images for each part of a batch of 8"
        ),
        tiny_run({"plugins": {"self_supervision": {"share": 0.1}}}),
    ):
        pass


def test_recalibration_leaves_the_second_head_alone():
    plugins = {"self_supervision": {}, "averaging": {"decay": 0.5, "statistics": "recalibrate"}}
    with tiny_run({"plugins": plugins}) as run:
        for batch in run.batches():
            loop.step(run, batch)
        average = run.plugins["averaging"]._average.of(run.network)
        heads = [next(m for m in net.modules() if isinstance(m, AuxiliaryHead)) for net in (average, run.eval_model())]
        means = [head.head[2].running_mean for head in heads]
        assert torch.equal(*means)
        assert means[0].abs().sum() > 0
