"""Augmentation, AutoAugment, label noise, clipping and averaging against what they promise."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchvision.transforms import v2

from hookflat import UserError
from hookflat.functional import seeds
from hookflat.functional.averaging import MovingAverage
from hookflat.functional.data import Batch, Images
from hookflat.testing import tiny_run
from hookflat.training import loop
from hookflat_plugins.adr import AnnealingSelfDistillation
from hookflat_plugins.augment import Augment
from hookflat_plugins.autoaugment import AutoAugment, policy_on
from hookflat_plugins.label_noise import LabelNoise


class FakeRun:
    """What batch transforms need of a run: data and random numbers."""

    class data:  # noqa: N801
        num_classes = 10
        train = Images(torch.full((4, 3, 32, 32), 51, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))

    def __init__(self, seed=0):
        self.base = seed

    def seed(self, name):
        from hookflat.functional import seeds

        return seeds.derive_seed(self.base, name)

    def uniform(self, name, batch, shape=()):
        from hookflat.functional import seeds

        return seeds.uniform(batch.row, shape, self.seed(name))


def batch_of(x, y=None):
    y = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    everywhere = torch.ones(len(x), dtype=torch.bool)
    return Batch(x, y, y, torch.arange(len(x)), everywhere, torch.arange(len(x)), len(x))


def test_label_noise_has_the_protocols_distribution():
    """P(target = k) = (1 - rate) [k = y] + rate / K, for each y; the labels that attacks use stay."""
    for label in (0, 7):
        y = torch.full((20_000,), label)
        batch = batch_of(torch.zeros(len(y), 1, 1, 1), y)
        LabelNoise(rate=0.4).transform_batch(FakeRun(label), batch)
        counts = torch.bincount(batch.target, minlength=10).numpy()
        expected = [len(y) * (0.64 if k == label else 0.04) for k in range(10)]
        assert stats.chisquare(counts, expected).pvalue > 1e-3
        assert torch.equal(batch.y, y)


def test_label_noise_is_drawn_anew_in_every_step_and_alike_in_any_split():
    with tiny_run({"plugins": {"label_noise": {"rate": 0.5}}}) as run:
        targets = []
        for run.step in range(2):
            batch = batch_of(torch.zeros(64, 1, 6, 6))
            run.hook.transform_batch(run=run, batch=batch)
            targets.append(batch.target)
        half = batch_of(torch.zeros(32, 1, 6, 6))
        half.row = torch.arange(32, 64)
        run.hook.transform_batch(run=run, batch=half)
    assert not torch.equal(*targets)
    assert torch.equal(half.target, targets[1][32:])


def test_crops_are_shifts_of_the_padded_image_and_flips_mirror_it():
    torch.manual_seed(0)
    x = torch.rand(300, 1, 5, 5)
    batch = batch_of(x.clone())
    Augment(padding=1, flip=True).transform_batch(FakeRun(), batch)
    padded = torch.nn.functional.pad(x, [1] * 4)
    met = torch.zeros(300, 18, dtype=torch.bool)
    for i in range(18):
        dy, dx, flip = i // 6, i // 2 % 3, i % 2
        window = padded[:, :, dy : dy + 5, dx : dx + 5]
        window = window.flip(3) if flip else window
        met[:, i] = (batch.x == window).flatten(1).all(1)
    assert (met.sum(1) == 1).all()
    assert stats.chisquare(met.sum(0).numpy()).pvalue > 1e-3


def test_reflected_crops_are_cut_from_what_numpy_mirrors_as_official_awp_does():
    batch = batch_of(torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    padded = np.pad(batch.x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    Augment(padding=2, flip=False, fill="reflect").transform_batch(FakeRun(), batch)
    size = batch.x.shape[2]
    for image, mirrored in zip(batch.x.numpy(), padded, strict=True):
        windows = [mirrored[:, i : i + size, j : j + size] for i in range(5) for j in range(5)]
        assert any(np.array_equal(image, window) for window in windows)
    with pytest.raises(UserError, match="mirrors more than images"):
        Augment(padding=size, fill="reflect").transform_batch(FakeRun(), batch)


def test_mean_filled_crops_leave_a_mean_coloured_image_alone():
    x = torch.full((5, 3, 32, 32), 0.2)
    batch = batch_of(x.clone())
    Augment(fill="mean").transform_batch(FakeRun(), batch)
    assert torch.allclose(batch.x, x)


def test_cutout_squares_have_their_side_and_may_leave_the_image(monkeypatch):
    monkeypatch.setitem(AutoAugment.transform_batch.__globals__, "policy_on", lambda x, draws, mean: x)
    x = torch.full((4000, 3, 32, 32), 0.8)
    batch = batch_of(x)
    AutoAugment(cutout=0.5).transform_batch(FakeRun(), batch)
    cut = (batch.x - 0.2).abs().amax(1) < 1e-6
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.sum((1, 2)), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == 16
    assert rows.min() == columns.min() == 8  # the centre is inside: half a side stays at least
    assert ((rows == 16).float().mean().item()) == pytest.approx(17 / 32, abs=0.03)


def test_autoaugment_is_torchvisions_cifar10_policy_image_by_image(monkeypatch):
    """Its own forward, given our draws in place of its own; every sub-policy, applied or not, in both directions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (400, 3, 32, 32), generator=generator, dtype=torch.uint8)
    draws, mean = torch.rand(400, 5, generator=generator), torch.tensor([0.2, 0.4, 0.6])
    ours = policy_on(x, draws, mean)
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=[51, 102, 153])
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor(int(draws[image, 0] * high)))
    for image in range(len(x)):
        policy, left = theirs._policies[int(draws[image, 0] * 25)], []
        for number, (name, probability, _) in enumerate(policy):
            applied, sign = draws[image, 1 + 2 * number : 3 + 2 * number]
            left += [applied] + ([sign] if applied <= probability and theirs._AUGMENTATION_SPACE[name][1] else [])
        monkeypatch.setattr(torch, "rand", lambda size, left=left: left.pop(0))
        assert torch.equal(theirs(x[image]), ours[image])
        assert not left
    assert (draws[:, 0] * 25).long().unique().numel() == 25


def test_autoaugment_depends_on_the_row_alone():
    torch.manual_seed(0)
    x = (torch.randint(0, 256, (6, 3, 32, 32)) / 255).float()
    whole, part = batch_of(x.clone()), batch_of(x[2:4].clone())
    part.row = torch.arange(2, 4)
    for batch in (whole, part):
        AutoAugment(cutout=0).transform_batch(FakeRun(), batch)
    assert torch.equal(whole.x[2:4], part.x)
    assert not torch.equal(whole.x, x)
    state = torch.random.get_rng_state()
    AutoAugment().transform_batch(FakeRun(), whole)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_weight_is_clipped_after_every_step():
    with tiny_run({"plugins": {"weight_clipping": {"w_max": 0.03}}}) as run:
        for batch in run.batches():
            loop.step(run, batch)
            assert max(float(p.detach().abs().max()) for p in run.network.parameters()) <= 0.03
        assert any(float(p.detach().abs().max()) == pytest.approx(0.03) for p in run.network.parameters())


@pytest.mark.parametrize("statistics", ["average", "copy", "recalibrate"])
def test_averaging_is_the_arithmetic(statistics):
    decay = 0.7
    with tiny_run({"plugins": {"averaging": {"decay": decay, "statistics": statistics}}}) as run:
        norm = run.network.net[1]
        weights = [p.detach().clone().double() for p in run.network.parameters()]
        mean = norm.running_mean.clone().double()
        for batch in run.batches():
            loop.step(run, batch)
            weights = [decay * a + (1 - decay) * p for a, p in zip(weights, run.network.parameters(), strict=True)]
            mean = decay * mean + (1 - decay) * norm.running_mean
        model = run.eval_model()
        for a, p in zip(weights, model.parameters(), strict=True):
            assert torch.allclose(a.float(), p, atol=1e-6)
        ours = model.net[1].running_mean
        if statistics == "average":
            assert torch.allclose(ours, mean.float(), atol=1e-6)
        elif statistics == "copy":
            assert torch.equal(ours, norm.running_mean)
        else:
            x, _ = run.data.train.__getitems__(torch.arange(len(run.data.train)))
            first = model.net[0]((x - model.mean) / model.std)
            chunks = torch.stack([c.mean((0, 2, 3)) for c in first.split(8)])
            assert torch.allclose(ours, chunks.mean(0), atol=1e-5)


def test_an_average_that_was_loaded_is_what_is_kept_before_it_is_used():
    """A checkpoint inside an outer step of Entropy-SGD comes before the next update."""
    average = MovingAverage(0.7)
    network = nn.Linear(2, 2)
    average.of(network)
    loaded = {name: torch.full_like(value, 3.0) for name, value in network.state_dict().items()}
    average.load_state_dict(loaded)
    assert all((value == 3.0).all() for value in average.state_dict().values())
    assert all((value == 3.0).all() for value in average.of(network).state_dict().values())


def test_an_average_begins_where_it_is_told_to_and_is_empty_before():
    average, network = MovingAverage(0.7), nn.Linear(2, 2)
    assert average.state_dict() == {}
    average.load_state_dict({})
    with torch.no_grad():
        network.weight.fill_(2.0)
        average.begin(network)
        network.weight.fill_(5.0)
    average.begin(network)  # it has
    assert (average.of(network).weight == 2.0).all()
    average.update(network)
    assert torch.allclose(average.of(network).weight, torch.tensor(0.7 * 2 + 0.3 * 5))


def test_schedules_point_by_point():
    def rates(schedule, epochs=10):
        with tiny_run({"schedule": schedule, "run": {"epochs": epochs}}) as run:
            collected = []
            for _ in range(run.total_steps):
                collected.append(run.optimizer.param_groups[0]["lr"])
                run.optimizer.step()
                run.schedule.step()
            return collected

    steps = 30
    multi = rates({"name": "multistep", "milestones": ["2/5", 0.6, "4/5"], "factor": 0.1})
    assert multi == pytest.approx([0.1] * 12 + [0.01] * 6 + [0.001] * 6 + [0.0001] * 6)
    one = rates({"name": "cyclic", "peak": 0.2})
    assert one == pytest.approx([0.2 * (i / 15 if i <= 15 else (30 - i) / 15) for i in range(steps)])
    three = rates({"name": "cyclic", "peak": 0.3, "cycles": 3})
    assert three == pytest.approx([0.3 * (1 - abs(i % 10 - 5) / 5) for i in range(steps)])
    assert rates({"name": "constant"}) == [0.1] * steps


def test_optimizers_are_torchs_with_the_papers_settings():
    with tiny_run({"optimizer": {"name": "sgd"}}) as run:
        group = run.optimizer.param_groups[0]
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
        assert len(group["params"]) == len(list(run.network.parameters()))
    with tiny_run({"optimizer": {"name": "adam", "lr": 0.01}}) as run:
        assert isinstance(run.optimizer.optimizer, torch.optim.Adam)
        assert math.isclose(run.optimizer.param_groups[0]["lr"], 0.01)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_label_smoothing_is_the_cross_entropy_with_the_smoothed_label(tau):
    with tiny_run({"plugins": {"label_smoothing": {"tau": tau}}}) as run:
        logits = torch.randn(8, 3, dtype=torch.float64)
        y = torch.arange(8) % 3
        smoothed = (1 - tau) * torch.eye(3, dtype=torch.float64)[y] + tau / 3
        expected = -(smoothed * logits.log_softmax(1)).sum(1)
        assert torch.allclose(run.criterion(logits, y), expected, atol=1e-12)
        batch = next(run.batches())
        value = run.hook.attack_objective(run=run, batch=batch)(run.attack_model, batch.x)
        plain = torch.nn.functional.cross_entropy(run.attack_model(batch.x), batch.y, reduction="none")
        assert torch.allclose(value, plain)


def snapshots(run):
    """Train to the end; the weights after every epoch."""
    collected = []
    while run.epoch < run.epochs:
        for batch in run.batches():
            loop.step(run, batch)
        collected.append([p.detach().clone() for p in run.network.parameters()])
        run.epoch += 1
    return collected


def test_swa_is_the_mean_of_the_weights_at_the_ends_of_epochs():
    """Izmailov et al. (2018), Alg. 1: from the start on, every second epoch."""
    with tiny_run({"plugins": {"swa": {"start": 0.5, "every": 2}}, "run": {"epochs": 8}}) as run:
        assert run.eval_model() is run.network
        at = snapshots(run)
        taken = [at[i] for i in (3, 5, 7)]
        for p, *values in zip(run.eval_model().parameters(), *taken, strict=True):
            assert torch.allclose(p, torch.stack(values).mean(0), atol=1e-6)


def test_swa_estimates_batch_statistics_anew_on_the_clean_training_set():
    with tiny_run({"plugins": {"swa": {"start": 0.0}}, "run": {"batch_size": 24}}) as run:
        snapshots(run)
        average = run.eval_model()
        inputs = {}
        norm = average.net[1]
        handle = norm.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0]))
        average(run.data.train.x.float() / 255)
        handle.remove()
        x = inputs["x"].transpose(0, 1).flatten(1)
        assert torch.allclose(norm.running_mean, x.mean(1), atol=1e-5)
        assert torch.allclose(norm.running_var, x.var(1), rtol=1e-4)


@pytest.mark.parametrize("plugin", [{"swa": {"start": 0.0}}, {"averaging": {"statistics": "recalibrate"}}])
def test_batch_statistics_are_estimated_once_for_all_who_ask_after_a_step(plugin):
    with tiny_run({"plugins": plugin}) as run:
        snapshots(run)
        average = run.eval_model()
        assert run.eval_model() is average
        kept = weakref.ref(average)
        del average
        loop.step(run, next(run.batches()))
        gc.collect()
        assert kept() is None


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "distributions"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_adr_mixes_the_target_with_the_average_s_prediction(progress, soft):
    """Wu et al. (2023) example by example: temperature and share anneal; the average's error cuts the share."""
    plugin = AnnealingSelfDistillation(temperature=2.0, last_temperature=1.0, share=0.7, last_share=0.9)
    torch.manual_seed(0)
    logits, y = 3 * torch.randn(20, 4, dtype=torch.float64), torch.randint(4, (20,))
    hard = torch.eye(4, dtype=torch.float64)[y]
    target = 0.9 * hard + 0.025 if soft else y
    temperature, share = {0.0: (2.0, 0.7), 0.5: (1.5, 0.8), 1.0: (1.0, 0.9)}[progress]
    expected = []
    for z, label, old in zip(logits, y, target if soft else hard, strict=True):
        p = torch.exp(z / temperature) / torch.exp(z / temperature).sum()
        cut = min(max(share - (p.max() - p[label]).item(), 0.0), 1.0)
        expected.append(cut * p + (1 - cut) * old)
    ours = plugin.rectified(logits, target, progress)
    assert torch.allclose(ours, torch.stack(expected), atol=1e-12)
    assert torch.allclose(ours.sum(1), torch.ones(20, dtype=torch.float64))


def test_the_teacher_of_adr_is_the_average_of_the_weights_and_the_attack_sees_its_labels():
    with tiny_run({"plugins": {"adr": {"decay": 0.6}}}) as run:
        expected = {k: v.clone() for k, v in run.network.state_dict().items()}
        for batch in run.batches():
            run.hook.transform_batch(run=run, batch=batch)
            teacher = run.plugins["adr"]._teacher.of(run.network)
            assert not teacher.training
            logits = teacher(batch.x).detach()
            rectified = run.plugins["adr"].rectified(logits, batch.y, run.step / run.total_steps)
            assert torch.allclose(batch.target, rectified)
            objective = run.hook.attack_objective(run=run, batch=batch)
            soft = -(batch.target * run.attack_model(batch.x).log_softmax(1)).sum(1)
            assert torch.allclose(objective(run.attack_model, batch.x), soft, atol=1e-5)
            run.update(run.hook.gradients(run=run, batch=batch, x_adv=batch.x))
            run.hook.after_step(run=run)
            now = run.network.state_dict()
            for k, v in expected.items():
                expected[k] = 0.6 * v + 0.4 * now[k] if v.is_floating_point() else now[k]
        for k, v in teacher.state_dict().items():
            assert torch.allclose(v.float(), expected[k].float(), atol=1e-6), k


@pytest.mark.parametrize("plugin", ["adr", "mixup"])
@pytest.mark.parametrize("loss", [{"name": "mail", "form": "at"}, {"name": "uat", "targets": "++"}])
def test_the_attack_sees_the_changed_target_also_under_losses_that_sometimes_have_an_objective(plugin, loss):
    with tiny_run({"plugins": {plugin: {}}, "loss": loss}) as run:
        batch = next(run.batches())
        run.hook.transform_batch(run=run, batch=batch)
        value = run.hook.attack_objective(run=run, batch=batch)(run.attack_model, batch.x)
        soft = -(batch.target * run.attack_model(batch.x).log_softmax(1)).sum(1)
        assert batch.target.is_floating_point()
        assert torch.allclose(value, soft, atol=1e-5)


def test_adr_leaves_the_objective_of_trades_alone():
    with tiny_run({"plugins": {"adr": {}}, "loss": {"name": "trades"}}) as run:
        batch = next(run.batches())
        run.hook.transform_batch(run=run, batch=batch)
        objective = run.hook.attack_objective(run=run, batch=batch)
        assert torch.allclose(objective(run.attack_model, batch.x), torch.zeros(8), atol=1e-6)  # KL of x from itself


@pytest.mark.parametrize(
    ("option", "told"), [({"compile": True}, "second derivatives"), ({"precision": "fp16"}, "bf16")]
)
def test_grad_align_says_where_it_has_no_gradient_of_a_gradient(option, told, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: net)
    with tiny_run({"plugins": {"grad_align": {}}, "run": option}) as run, pytest.raises(UserError, match=told):
        loop.step(run, next(run.batches()))


def test_grad_align_is_one_minus_the_cosine_of_gradients_in_the_ball():
    """Andriushchenko and Flammarion (2020) as the official code computes it: norms and dot products."""
    with tiny_run({"plugins": {"grad_align": {"weight": 0.7}}}) as run:
        run.network.double()
        batch = next(run.batches())
        batch.x = batch.x.double()
        seen = {k: v.clone() for k, v in run.network.state_dict().items()}
        (ours,) = run.hook.extra_loss(run=run, batch=batch, x_adv=batch.x)
        assert all(torch.equal(v, seen[k]) for k, v in run.network.state_dict().items())
        eta = 0.2 * seeds.uniform(batch.row, batch.x.shape[1:], run.seed("grad_align")) - 0.1
        noisy = batch.x + eta
        assert (noisy < 0).any()
        gradients = []
        for x in (batch.x, noisy):
            x = x.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(run.network(x), batch.y)
            gradients.append(torch.autograd.grad(loss, x, create_graph=True)[0])
        first, second = gradients[0].detach(), gradients[1]
        norms = [(g**2).sum((1, 2, 3)) ** 0.5 for g in (first, second)]
        expected = 0.7 * (1 - ((first * second).sum((1, 2, 3)) / (norms[0] * norms[1])).mean())
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        assert ours.item() > 1e-3
        weights = list(run.network.parameters())
        pairs = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (ours, expected)]
        for a, b in zip(*pairs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, atol=1e-10)
        assert sum(a is not None and a.abs().sum() > 0 for a in pairs[0]) > 1
