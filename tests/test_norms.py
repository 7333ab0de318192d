"""Threats in other norms, from a recipe to attacks and measures."""

import tomllib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from sklearn.datasets import load_digits
from test_contract import OPTIONS
from torch import nn

import hookflat
from hookflat import Data, Images, hookimpl
from hookflat.errors import UserError
from hookflat.functional.balls import BALLS
from hookflat.functional.choices import Norm
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import recipe_folders
from hookflat.recipe.tables import NORMS, RADII
from hookflat.testing import run_recipe, tiny_run
from hookflat.training import loop

ORDERS = {"Linf": torch.inf, "L2": 2, "L1": 1}
EPS = {"Linf": 0.1, "L2": 0.4, "L1": 1.5}


def test_the_norms_are_those_of_the_balls():
    assert set(NORMS) == BALLS.keys() == {*get_args(Norm)}


SCALES = {
    "": {"Linf": (0.15, 0.0335), "L2": (0.35, 0.07), "L1": (1.2, 0.24)},
    "cifar10-mini": {"Linf": (4 / 255, 1 / 255), "L2": (0.125, 0.03), "L1": (1.5, 0.375)},
    "cifar10": {"Linf": (8 / 255, 0.007), "L2": (0.5, 0.1), "L1": (12, 2.4)},
    "imagenet": {"Linf": (4 / 255, 1 / 255), "L2": (2, 0.5), "L1": (255, 64)},
}
"""Of measures at a scale; trainings have the same but for the longer steps of ImageNet's short attack."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_training_takes_the_radius_of_its_norm_and_so_do_its_measures(scale, norm):
    catalogue, folder = Catalogue(), recipe_folders()[0][1]
    overlays = [f"scales/{scale}"] if scale else []
    collected = set()
    for file in sorted(folder.glob("*.toml")):
        if scale == "imagenet" and file.stem in ("swa", "kd_swa"):  # the scale averages
            continue
        recipe = load_recipe(file.stem, overlays=overlays, overrides={"attack.norm": norm}, catalogue=catalogue)
        inner, attack = recipe.slots["attack"], recipe.slots["attack"].attack()
        eps, step_size = SCALES[scale][norm]
        if file.stem == "vit" and not scale:
            eps, step_size = {"Linf": (0.05, 0.0125), "L2": (0.12, 0.03), "L1": (0.4, 0.1)}[norm]
        assert (attack.threat.norm, recipe.eval.norm) == (norm, norm)
        assert (recipe.eval.eps, recipe.eval.step_size) == (eps, step_size), file.stem
        assert attack.threat.eps == pytest.approx(eps * inner.eps_factor), file.stem
        if recipe.slot_names["attack"] != "apgd" and not inner.alpha:
            assert step_size <= attack.step_size <= eps, file.stem
        assert inner.reach > 0.999 or not attack.steps, file.stem
        collected.add(file.stem)
    assert len(collected) > 40


@pytest.mark.parametrize("recipe", ["at", "vit", "pgd14", "fast_at", "trades"])
def test_steps_reach_the_radius_at_every_scale(recipe):
    for scale in sorted((recipe_folders()[0][1] / "scales").glob("*.toml")):
        assert load_recipe(recipe, overlays=[scale]).slots["attack"].reach > 0.999, scale.stem


@pytest.mark.parametrize("file", sorted(recipe_folders()[0][1].rglob("*.toml")), ids=lambda file: file.stem)
def test_no_shipped_radius_is_of_one_norm_alone(file):
    tables = tomllib.loads(file.read_text())
    for place in RADII:
        value = tables.get(place[0], {}).get(place[1])
        assert value is None or value.keys() == {*NORMS}, place


def test_a_radius_from_below_another_norm_is_none_of_it(tmp_path):
    """In a file below; beside the norm, above it, and in the norm that it was written for, it stands."""
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "at"\n[attack]\neps = 0.1\n')
    with pytest.raises(UserError) as caught:
        load_recipe(mine, overrides=["attack.norm=L2"])
    assert str(caught.value) == (
        f"{mine}:3: attack.eps: 0.1 was written for the norm Linf, and --set attack.norm asks for L2: set attack.eps "
        "too, or write eps = { Linf = ..., L2 = ... }"
    )
    for overrides in (["attack.norm=L2", "attack.eps=0.2"], ["attack.eps=0.2", "attack.norm=L2"]):
        recipe = load_recipe(mine, overrides=overrides)
        assert (recipe.slots["attack"].eps, recipe.eval.eps) == (0.2, 0.35)
    assert load_recipe(mine, overrides=["attack.norm=Linf"]).slots["attack"].eps == 0.1
    two = tmp_path / "two.toml"
    two.write_text('extends = "mine.toml"\n[attack]\nnorm = "L2"\neps = 0.3\n')
    assert load_recipe(two, overrides=["attack.norm=L2"]).slots["attack"].eps == 0.3
    assert load_recipe(two, overrides=["attack.eps=0.4"]).slots["attack"].eps == 0.4
    with pytest.raises(UserError, match=r"two.toml:4: attack.eps: 0.3 was written for the norm L2, .* asks for Linf"):
        load_recipe(two, overrides=["attack.norm=Linf"])
    few = {"needs": (), "tables": ()}
    with pytest.raises(UserError, match=r"eval.eps: 0.5 was written for the norm L2, and --set eval.norm asks for L1"):
        load_recipe({"attack": {"norm": "L2"}, "eval": {"eps": 0.5}}, overrides={"eval.norm": "L1"}, **few)
    with pytest.raises(UserError, match="recipe asks for the norm L2, and the default is a radius in Linf"):
        load_recipe({"attack": {"name": "pgd", "norm": "L2"}}, **few)


def test_measures_may_be_in_another_norm_and_what_is_said_for_no_norm_is_told():
    by_norm = {"attack.norm": "L2", "attack.eps": {"L2": 0.5, "Linf": 0.1}, "eval.norm": "L1", "eval.eps": 3}
    recipe = load_recipe("at", overrides=by_norm)
    assert recipe.slots["attack"].eps == 0.5
    assert (recipe.eval.norm, recipe.eval.eps) == ("L1", 3)
    assert load_recipe("at", overrides={"attack.eps": {"Linf": 0.2}}).slots["attack"].eps == 0.2
    with pytest.raises(UserError, match=r"attack.eps: says nothing for the norm L2"):
        load_recipe("at", overrides={"attack.norm": "L2", "attack.eps": {"Linf": 0.2}})
    one_by_one = {"attack.norm": "L2", "attack.eps.L2": 0.5, "attack.eps.Linf": 0.1, "eval.norm": "L1", "eval.eps": 3}
    assert load_recipe("at", overrides=one_by_one).tables == recipe.tables
    with pytest.raises(UserError, match=r"eps: should be at most 1 in the L-infinity norm"):
        load_recipe("at", overrides={"attack.eps": 8})
    for table in ("attack", "eval"):
        with pytest.raises(UserError) as told:
            load_recipe("at", overrides={f"{table}.norm": "l2"})
        assert str(told.value) == f"--set {table}.norm: {table}.norm: should be 'Linf', 'L2' or 'L1', not 'l2'"


@pytest.mark.parametrize("name", ["apgd", "n_fgsm", "mi_fgsm", "free", "pgd_tau"])
def test_another_attack_keeps_the_threat_and_nothing_else(name, tmp_path):
    recipe = load_recipe("at", overlays=["scales/cifar10-mini"], overrides={"attack.name": name})
    inner = recipe.slots["attack"]
    assert (inner.norm, inner.eps, inner.step_size) == ("Linf", 4 / 255, 1 / 255)
    assert (inner.eps, inner.step_size) == (recipe.eval.eps, recipe.eval.step_size)
    assert recipe.origin(("attack", "eps")).partition(":")[0].endswith("cifar10-mini.toml")
    one, other = (
        load_recipe("at", overrides=overrides).slots["attack"]
        for overrides in (["attack.norm=L2", f"attack.name={name}"], [f"attack.name={name}", "attack.norm=L2"])
    )
    assert vars(one) == vars(other)
    assert (one.norm, one.eps, one.step_size) == ("L2", 0.35, 0.07)
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "at.toml"\n[attack]\nsteps = 3\n')
    assert load_recipe(mine, overrides={"attack.name": name}).slots["attack"].steps == type(inner)().steps
    mine.write_text(f'extends = "at.toml"\n[attack]\nname = "{name}"\neps = 0.1\n')
    assert load_recipe(mine).slots["attack"].eps == 0.1
    assert load_recipe(mine, overrides=["attack.name=pgd"]).slots["attack"].eps == 0.1


def test_an_attack_without_a_radius_takes_no_threat():
    @dataclass(eq=False)
    class Blur:
        width: int = 3

        @hookimpl
        def craft(self, batch):
            return batch.x

    recipe = load_recipe("at", overrides={"attack.name": "blur"}, catalogue=Catalogue([Blur]))
    assert recipe.tables["attack"] == {"name": "blur", "width": 3}
    with pytest.raises(UserError, match=r"attack.eps: unknown option of 'blur'"):
        load_recipe("at", overrides={"attack.name": "blur", "attack.eps": 0.1}, catalogue=Catalogue([Blur]))


def test_a_set_plugin_comes_before_its_options():
    for overrides in (["loss.beta=3", "loss.name=trades"], ["loss.name=trades", "loss.beta=3"]):
        assert load_recipe("at", overrides=overrides).slots["loss"].beta == 3


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("attack", [{"name": "pgd"}, {"name": "pgd_tau"}])
def test_training_stays_in_the_ball(norm, attack):
    seen = []

    class Spy:
        @hookimpl(wrapper=True)
        def craft(self, run, batch, objective):
            x_adv = yield
            seen.append(torch.linalg.vector_norm((x_adv - batch.x).flatten(1), ord=ORDERS[norm], dim=1))
            return x_adv

    options = {"norm": norm, "eps": EPS[norm], "step_size": EPS[norm] / 2, "steps": 3}
    with tiny_run({"attack": attack | options, "eval": {"norm": norm}}) as run:
        run.hooks.manager.register(Spy())
        for batch in run.batches():
            loop.step(run, batch)
        assert run.subject("test").threat == hookflat.Threat(run.recipe.eval.eps, norm)
    assert (torch.cat(seen) <= EPS[norm] * (1 + 1e-5)).all()
    assert torch.cat(seen).median() > EPS[norm] / 2  # and uses it


OWN = {
    "clean_error",
    "clean_average_flatness",
    "clean_worst_flatness",
    "weight_norm",
    "boundary_thickness",
    "multi_norm",
}
"""Measures that do not attack, or under threats of their own options."""
FURTHER = {"trust": 4, "autoattack": 3}
"""How many radii others go: trust looks at four, AutoAttack's APGD comes from three in L1."""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "measure", [p.name for p in Catalogue() if kind_of(p.load()) == "measure" and p.name not in OWN]
)
def test_every_measure_attacks_in_the_norm_of_the_run(measure, norm):
    """All images that the network sees lie in the ball of a clean one, and some far from its middle."""
    seen = []
    eval_ = {"norm": norm, "eps": EPS[norm], "step_size": EPS[norm] / 2, "final": {measure: OPTIONS.get(measure, {})}}
    with tiny_run({"eval": eval_}) as run:
        subject = run.subject("test")
        clean = subject.examples.images.__getitems__(torch.arange(len(subject.examples)))[0]
        subject.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        run.measures["final"].call.measure(subject=subject)
    delta = torch.cat(seen).flatten(1)[:, None] - clean.flatten(1)
    distance = torch.linalg.vector_norm(delta, ord=ORDERS[norm], dim=2).amin(dim=1)
    assert distance.max() <= EPS[norm] * FURTHER.get(measure, 1) * (1 + 1e-5)
    assert distance.max() > EPS[norm] / 2


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_results_say_in_which_norm_they_are(norm, tmp_path):
    attack = {"norm": norm, "eps": EPS[norm], "step_size": 0.1, "steps": 1}
    tables = {"attack": attack, "eval": {"eps": EPS[norm], "final": {"robust_loss": {"steps": 1, "restarts": 1}}}}
    results = run_recipe(tables, tmp_path / "run").results
    assert (results.protocol.norm, results.protocol.threat) == (norm, f"{norm}, eps {EPS[norm]:.4g}")


def test_the_union_of_the_norms_is_what_any_of_them_breaks(tmp_path):
    options = {"linf": 0.05, "l2": 0.3, "l1": 0, "steps": 2, "restarts": 2}
    results = run_recipe({"eval": {"final": {"multi_norm": options, "clean_error": {}}}}, tmp_path / "run").results
    test = results.models["last"].test
    assert test["rerr_any_norm"] >= max(test["rerr_linf"], test["rerr_l2"]) >= test["clean_error"]
    assert "rerr_l1" not in test


def test_each_norm_counts_where_it_breaks_what_the_others_do_not(monkeypatch):
    """Three norms, each with its own radius, step and one example out of five: three fifths in all."""
    asked = []

    def breaks_one(model, examples, *, attack, **_):
        asked.append((attack.threat.norm, attack.threat.eps, attack.step_size, attack.steps, attack.restarts))
        return SimpleNamespace(wrong=torch.arange(5) == len(asked))

    options = {"linf": 0.05, "l2": 0.3, "l1": 1.2, "alpha": 0.5, "steps": 3, "restarts": 2}
    with tiny_run({"eval": {"final": {"multi_norm": options}}}) as run:
        globals_ = type(run.recipe.measures["final"]["multi_norm"]).measure.__globals__  # whoever imported it when
        monkeypatch.setitem(globals_, "robust_error", breaks_one)
        measured = run.measures["final"].call.measure(subject=run.subject("test"))
    assert asked == [("Linf", 0.05, 0.025, 3, 2), ("L2", 0.3, 0.15, 3, 2), ("L1", 1.2, 0.6, 3, 2)]
    expected = {"rerr_linf": 0.2, "rerr_l2": 0.2, "rerr_l1": 0.2, "rerr_any_norm": 0.6}
    assert [result for result in measured if "rerr_any_norm" in result] == [pytest.approx(expected)]


def test_radii_for_other_images_than_the_field_s_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="have defaults for 3x32x32 images alone, these are 1x6x6"):
        run_recipe({"eval": {"final": {"multi_norm": {"linf": 0.05, "l2": 0.3}}}}, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()  # before the training


@dataclass(eq=False)
class OneStrongPixel:
    """Two classes that differ by 0.4 in one pixel and by 0.1 in the 63 others."""

    @hookimpl
    def build_data(self):
        y = torch.arange(8) % 2
        half = torch.cat([torch.tensor([0.2]), torch.full((63,), 0.05)]).view(1, 1, 8, 8)
        images = Images((255 * (0.5 + half * (2 * y.view(-1, 1, 1, 1) - 1))).round().to(torch.uint8), y)
        return Data(images, images, 2)


@dataclass(eq=False)
class Linear:
    @hookimpl
    def build_model(self, run):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_training_makes_robust_to_its_own_norm(tmp_path):
    """By hand: the strong pixel alone withstands 0.08 in L-infinity and not 0.3 in L2 (0.2 away); all together, 0.44
    away in L2, withstand that, and not 0.08 on 64 pixels."""
    steps, eps = 60, {"Linf": 0.08, "L2": 0.3}
    trained = {"run": {"epochs": steps, "batch_size": 8}, "optimizer": {"name": "sgd", "lr": 1, "weight_decay": 0}}
    trained |= {"data": {"name": "one_strong_pixel"}, "model": {"name": "linear"}}
    for norm, other in (("Linf", "L2"), ("L2", "Linf")):
        attack = {"name": "pgd", "norm": norm, "eps": eps[norm], "step_size": eps[norm] / 2, "steps": 5}
        with tiny_run(trained | {"attack": attack, "eval": {"norm": norm}}, [OneStrongPixel, Linear]) as run:
            for run.epoch in range(steps):
                for batch in run.batches():
                    loop.step(run, batch)
            pair = run.data.test.__getitems__(torch.arange(8))
            attacks = {n: {"norm": n, "eps": eps[n], "step_size": eps[n] / 4} for n in eps}
            errors = {n: hookflat.robust_error(run.network, pair, **attacks[n]).error for n in eps}
        assert (errors[norm], errors[other]) == (0, 1)


@pytest.fixture(scope="module")
def digits_net():
    """A small network that has learnt the digits up to four, and a hundred others of them."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None], torch.tensor(bunch.target)
    x, y = x[y < 5], y[y < 5]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()
        net = nn.Sequential(*convs, nn.Flatten(), nn.Linear(256, 5))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(10):
            for rows in torch.randperm(600).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    return net.eval(), (x[700:800], y[700:800])


@pytest.mark.parametrize(("norm", "eps"), [("L2", 0.6), ("L1", 2.0)])
def test_pgd_breaks_nearly_what_autoattack_breaks(norm, eps, digits_net):
    """PGD-20 with five restarts, 105 passes, against APGD-CE and APGD-T, some 500: three examples of a hundred."""
    net, pair = digits_net
    pgd = hookflat.robust_error(net, pair, norm=norm, eps=eps, step_size=eps / 4, restarts=5)
    attacks = {"version": "custom", "attacks": ["apgd-ce", "apgd-t"]}
    strong = hookflat.autoattack(net, pair, norm=norm, eps=eps, batch_size=100, **attacks)
    assert 0.2 < strong.error < 0.8
    assert pgd.error == pytest.approx(strong.error, abs=0.031)
