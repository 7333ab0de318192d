"""TRADES and AT against formulas written out independently, in float64."""

import copy
import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_composition import LATER_PERTURBATIONS, PERTURBATIONS
from torch import nn

from hookflat import RunFolder, UserError
from hookflat.functional.losses import kl_divergence
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import loop
from hookflat.training.entry import teacher_of


def softmax(z):
    e = torch.exp(z - z.max(1, keepdim=True).values)
    return e / e.sum(1, keepdim=True)


def test_kl_divergence_is_the_sum_over_classes():
    torch.manual_seed(0)
    z, z_adv = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    p, q = softmax(z), softmax(z_adv)
    expected = (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(kl_divergence(z, z_adv), expected, rtol=0, atol=1e-12)


def in_float64(run):
    """The run's network, doubled, and a batch for it."""
    batch = next(run.batches())
    run.network.double()
    x, x_adv = batch.x.double(), (batch.x.double() + 0.1 * torch.rand_like(batch.x).double()).clamp(0, 1)
    batch.x = x
    return batch, x_adv


def gradients_of(run, loss):
    return torch.autograd.grad(loss, list(run.network.parameters()))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_loss_and_gradient(beta):
    with tiny_run({"loss": {"name": "trades", "beta": beta}}) as run:
        batch, x_adv = in_float64(run)
        ours = run.loss(batch, x_adv)
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        natural = -torch.log(p[torch.arange(len(p)), batch.y]).mean()
        expected = natural + beta * (p * torch.log(p / q)).sum() / len(p)
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_trades_attacks_the_divergence_from_the_clean_prediction():
    with tiny_run({"loss": {"name": "trades"}}) as run:
        batch = next(run.batches())
        objective = run.hook.attack_objective(run=run, batch=batch)
        x_adv = (batch.x + 0.05).clamp(0, 1)
        run.network.eval()
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        expected = (p * torch.log(p / q)).sum(1)
        assert torch.allclose(objective(run.attack_model, x_adv), expected, atol=1e-5)


@pytest.mark.parametrize("attack", ["pgd", "apgd", "mi_fgsm", "pgd_tau"])
@pytest.mark.parametrize("loss", ["trades", "ikl", "lbgat", "mail"])
def test_attacks_on_the_divergence_do_not_start_where_it_has_no_gradient(loss, attack):
    """Of 8 images, MI-FGSM from the image itself left four where they were, and said nothing."""
    for start, told in (("zero", True), ("uniform", False)):
        with tiny_run({"loss": {"name": loss}, "attack": {"name": attack, "steps": 3, "start": start}}) as run:
            batch = next(run.batches())
            objective = run.hook.attack_objective(run=run, batch=batch)
            if told:
                with pytest.raises(UserError, match="no gradient at the image itself"):
                    run.hook.craft(run=run, batch=batch, objective=objective)
                run.recipe.slots["attack"].steps = 0  # no attack is asked for
            x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
        assert (x_adv != batch.x).flatten(1).any(dim=1).all() != told


@pytest.mark.parametrize(("fraction", "adversarial"), [(1.0, range(8)), (0.5, [1, 3, 5, 7]), (0.25, [3, 7])])
def test_at_mixes_clean_and_adversarial_examples_by_their_share(fraction, adversarial):
    """Evenly over the batch: half of it, on one of two processes, has as many of both."""
    with tiny_run({"loss": {"name": "at", "fraction": fraction}, "model": {"norm": "group"}}) as run:
        batch, x_adv = in_float64(run)
        clean = [i for i in range(8) if i not in adversarial]
        wrong = lambda x, rows: nn.functional.cross_entropy(run.network(x[rows]), batch.y[rows], reduction="sum")
        expected = (wrong(x_adv, list(adversarial)) + (wrong(batch.x, clean) if clean else 0.0)) / 8
        assert run.loss(batch, x_adv).item() == pytest.approx(expected.item(), abs=1e-10)


def test_losses_use_the_target_and_attacks_the_label():
    with tiny_run() as run:
        batch = next(run.batches())
        batch.target = (batch.y + 1) % 3
        expected = nn.functional.cross_entropy(run.model(batch.x), batch.target)
        assert run.loss(batch, batch.x).item() == pytest.approx(expected.item(), abs=1e-6)
        objective = run.hook.attack_objective(run=run, batch=batch)
        run.network.eval()
        attacked = nn.functional.cross_entropy(run.network(batch.x), batch.y)
        assert objective(run.attack_model, batch.x).mean().item() == pytest.approx(attacked.item(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_mart_loss_and_gradient(beta):
    """Wang et al. (2020), Eq. 6 and 11, as the official repository computes them."""
    with tiny_run({"loss": {"name": "mart", "beta": beta}}) as run:
        batch, x_adv = in_float64(run)
        ours = run.loss(batch, x_adv)
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        rows = torch.arange(len(p))
        order = q.argsort(dim=1)
        runner_up = torch.where(order[:, -1] == batch.y, order[:, -2], order[:, -1])
        boosted = -torch.log(q[rows, batch.y]) - torch.log(1.0001 - q[rows, runner_up] + 1e-12)
        weighted = (p * torch.log(p / q)).sum(1) * (1.0000001 - p[rows, batch.y])
        expected = boosted.mean() + beta * weighted.mean()
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(4.0, 20.0, 4.0), (1.0, 0.5, 1.0)])
def test_ikl_is_the_sum_over_pairs_of_classes_with_the_weights_of_the_epoch_before(alpha, beta, temperature):
    """Cui et al. (2023) as the official code computes it: pairs of classes, one after the other."""
    loss = {"name": "ikl", "alpha": alpha, "beta": beta, "temperature": temperature}
    with tiny_run({"loss": loss}) as run:
        batch, x_adv = in_float64(run)
        weights = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        for _ in range(2):  # the first epoch, and one with weights
            ours = run.loss(batch, x_adv)
            z, z_adv = run.network(batch.x), run.network(x_adv)
            s = weights[batch.y]
            squares = 0.0
            for j in range(3):
                for k in range(3):
                    difference = (z[:, j] - z[:, k]) - (z_adv[:, j] - z_adv[:, k])
                    squares = squares + 0.25 * (s[:, j] * s[:, k] * difference**2).sum() / len(z)
            soft = -(softmax(z).detach() * softmax(z_adv).log()).sum(1).mean()
            natural = -softmax(z).log().gather(1, batch.y[:, None]).mean()
            expected = natural + alpha * soft + beta * squares
            assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
            for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-10)
            run.hook.epoch_end(run=run)
            p = softmax(z.detach() / temperature)
            weights = torch.stack([p[batch.y == k].mean(0) for k in range(3)])


def test_a_class_without_examples_keeps_its_weights():
    with tiny_run({"loss": {"name": "ikl"}}) as run:
        batch, x_adv = in_float64(run)
        batch.y = batch.target = torch.zeros_like(batch.y)
        run.loss(batch, x_adv)
        run.hook.epoch_end(run=run)
        weights = run.plugins["ikl"].state_dict()["classes"]
        assert torch.equal(weights[1:], torch.full((2, 3), 1 / 3, dtype=torch.float64))
        assert weights[0].sum().item() == pytest.approx(1)
        assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("form", ["at", "trades"])
def test_mail_weighs_examples_by_their_margin(form):
    """Liu et al. (2021) as the official code computes it, from the two largest probabilities."""
    with tiny_run({"loss": {"name": "mail", "form": form, "bias": -0.2, "slope": 5.0, "start": 0.5}}) as run:
        batch, x_adv = in_float64(run)
        for step in (0, run.total_steps - 1):
            run.step = step
            ours = run.loss(batch, x_adv)
            p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
            rows, (top, place) = torch.arange(len(p)), q.detach().topk(2, dim=1)
            true = q.detach()[rows, batch.y]
            other = torch.where((place == batch.y[:, None]).any(1), top.sum(1) - true, top[:, 0])
            weight = 3 / (1 + torch.exp(-5.0 * (other - true - 0.2))) if step else torch.ones(8)
            if form == "at":
                expected = (weight * -q[rows, batch.y].log()).mean()
            else:
                kl = (p * torch.log(p / q)).sum(1)
                expected = -p[rows, batch.y].log().mean() + 5.0 * (kl * weight).sum() / len(p)
            assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
            for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("plugins", [{}, {"awp": {"xi": 0.5}}], ids=["alone", "awp"])
def test_dom_removes_examples_of_small_clean_loss_from_its_start_on(plugins, accumulation):
    """By the network in evaluation mode before any perturbation, whose statistics no training pass has moved."""
    table = {"loss": {"name": "dom", "start": 0.5}, "plugins": plugins, "run": {"accumulation": accumulation}}
    with tiny_run(table) as run:
        batch, seen, criterion = next(run.batches()), [], run.criterion
        x_adv = (batch.x + 0.1 * torch.rand_like(batch.x)).clamp(0, 1)
        run.criterion = lambda *args: seen.append(criterion(*args)) or seen[-1]

        def pass_at(step):
            """The loss, and what it is made of in the last pass, at perturbed weights."""
            run.step = step
            loss = run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
            run.zero_grad()
            return loss.item(), torch.cat(seen[-accumulation:])

        loss, wrong = pass_at(0)
        assert loss == pytest.approx(wrong.mean().item(), abs=1e-6)
        clean = nn.functional.cross_entropy(run.network.eval()(batch.x), batch.y, reduction="none").detach()
        run.network.train()
        kept = clean >= clean.median()
        assert 0 < kept.sum() < len(kept)
        run.plugins["dom"].threshold = clean.median().item() - 1e-6
        loss, wrong = pass_at(run.total_steps // 2)
        assert loss == pytest.approx((wrong * kept).mean().item(), abs=1e-6)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    run_recipe({"attack": {"steps": 0, "start": "zero"}}, folder / "standard")
    run_recipe({"run": {"seed": 1}}, folder / "robust")
    return folder


def teacher(folder):
    with tiny_run() as run:
        run.network.load_state_dict(load_file(folder / "model.safetensors"))
        return run.network.double().eval()


@pytest.mark.parametrize(("beta", "gamma", "stretch"), [(2.5, 0.5, 2.0), (0.0, 1.0, 3.5)])
def test_hat_loss_and_gradient(beta, gamma, stretch, teachers):
    loss = {"name": "hat", "helper": str(teachers / "standard"), "beta": beta, "gamma": gamma, "stretch": stretch}
    with tiny_run({"loss": loss}) as run:
        batch, x_adv = in_float64(run)
        run.recipe.slots["loss"]._helper.double()
        ours = run.loss(batch, x_adv)
        rows = torch.arange(len(batch.y))
        p, q = softmax(run.network(batch.x)), softmax(run.network(x_adv))
        far = softmax(run.network(batch.x + stretch * (x_adv - batch.x)))
        told = teacher(teachers / "standard")(x_adv).argmax(1)
        expected = -torch.log(p[rows, batch.y]).mean() + beta * (p * torch.log(p / q)).sum(1).mean()
        expected = expected - gamma * torch.log(far[rows, told]).mean()
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_lbgat_moves_the_network_and_its_guide_down_the_official_loss(accumulation):
    """One sum over both networks, as in the official code; no logit or gradient of ours on the other side."""
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    tables = {"loss": {"name": "lbgat", "beta": 3.0}, "optimizer": optimizer, "schedule": {"name": "constant"}}
    tables |= {"model": {"norm": "group"}, "run": {"accumulation": accumulation}}  # no statistics of batches
    with tiny_run(tables) as run:
        guide = run.recipe.slots["loss"]._guide.network
        assert any(not torch.equal(a, b) for a, b in zip(run.network.parameters(), guide.parameters(), strict=True))
        f, g = (copy.deepcopy(net).double() for net in (run.network, guide))
        both = torch.optim.SGD([*f.parameters(), *g.parameters()], 0.1, 0.9, weight_decay=0.01)
        run.network.double(), guide.double()
        for batch in itertools.islice(run.batches(), 3):
            batch.x = batch.x.double()
            x_adv = (batch.x + 0.1 * torch.rand_like(batch.x)).clamp(0, 1)
            for _, part in run.parts(batch):  # the guide looks, too
                run.hook.craft(run=run, batch=part, objective=lambda model, x: model(x).sum(dim=1))
            run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
            run.optimizer.step()
            run.zero_grad()
            both.zero_grad()
            z, z_adv, told = f(batch.x), f(x_adv), g(batch.x)
            p, q = softmax(z), softmax(z_adv)
            kl = (p * torch.log(p / q)).sum(1).mean()
            ce = -torch.log(softmax(told)[torch.arange(len(told)), batch.y]).mean()
            ((z_adv - told).square().mean() + ce + 3 * kl).backward()
            both.step()
            for ours, theirs in ((run.network, f), (guide, g)):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_distillation_is_the_weighted_sum_at_a_temperature(teachers):
    folders = {"standard_teacher": str(teachers / "standard"), "robust_teacher": str(teachers / "robust")}
    loss = {"name": "distillation", "hard": 0.2, "standard": 0.3, "robust": 0.7, "temperature": 3.0} | folders
    with tiny_run({"loss": loss}) as run:
        batch, x_adv = in_float64(run)
        for _, network in run.recipe.slots["loss"]._teachers:
            network.double()
        ours = run.loss(batch, x_adv)
        z = run.network(x_adv)
        expected = -0.2 * torch.log(softmax(z)[torch.arange(len(z)), batch.y]).mean()
        for weight, name in ((0.3, "standard"), (0.7, "robust")):
            told = softmax(teacher(teachers / name)(x_adv) / 3)
            expected = expected - weight * 9 * (told * torch.log(softmax(z / 3))).sum(1).mean()
        assert ours.item() == pytest.approx(expected.item(), abs=1e-10)
        for a, b in zip(gradients_of(run, ours), gradients_of(run, expected), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_the_best_networks_teach_where_runs_kept_one_as_in_the_official_command(teachers, tmp_path):
    robust = tmp_path / "robust"
    shutil.copytree(teachers / "robust", robust)
    best = teacher(robust).float()
    with torch.no_grad():
        best.get_parameter(next(iter(dict(best.named_parameters())))).add_(1)
    RunFolder(robust).save_network("best", best)
    folders = {"standard_teacher": str(teachers / "standard"), "robust_teacher": str(robust)}
    for which in ({}, {"which": "best"}, {"which": "last"}):
        with tiny_run({"loss": {"name": "distillation"} | folders | which}) as run:
            (_, of_standard), (_, of_robust) = run.recipe.slots["loss"]._teachers
            expected = teacher(robust) if which == {"which": "last"} else best
            for taught, network in ((of_robust, expected), (of_standard, teacher(teachers / "standard"))):
                for name, value in network.float().state_dict().items():
                    assert torch.equal(taught.state_dict()[name], value)
    (robust / "model.safetensors").unlink()  # stopped half way
    with pytest.raises(UserError), tiny_run({"loss": {"name": "distillation"} | folders}):
        pass


def test_loading_a_teacher_leaves_the_threads_of_the_run(teachers):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with tiny_run({"run": {"threads": 1}}) as run:
            torch.set_num_threads(2)
            teacher_of(run, str(teachers / "robust"), "loss.robust_teacher")
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_teacher_that_is_not_there_or_knows_other_images_is_told(teachers):
    for options, table, message in (
        ({"helper": "nowhere"}, {}, "loss.helper = 'nowhere': no run there"),
        ({"helper": str(teachers / "standard")}, {"data": {"name": "digits"}}, "knows 3 classes, not 10"),
    ):
        with pytest.raises(UserError) as told, tiny_run({"loss": {"name": "hat"} | options} | table):
            pass
        assert message in str(told.value)


@pytest.mark.parametrize("perturbation", [*PERTURBATIONS, *LATER_PERTURBATIONS])
@pytest.mark.parametrize("loss", ["hat", "distillation"])
def test_losses_with_teachers_go_with_every_weight_perturbation_or_are_refused(loss, perturbation, teachers):
    names = {"hat": ["helper"], "distillation": ["standard_teacher", "robust_teacher"]}
    table = {"loss": {"name": loss} | dict.fromkeys(names[loss], str(teachers / "robust"))}
    table["plugins"] = {perturbation: {}} if perturbation else {}
    if perturbation == "rwp":
        with pytest.raises(UserError, match="does not go with"), tiny_run(table):
            pass
        return
    with tiny_run(table) as run:
        before = [p.detach().clone() for p in run.network.parameters()]
        for batch in run.batches():
            loop.step(run, batch)
        assert any(not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))
        assert all(p.isfinite().all() for p in run.network.parameters())
