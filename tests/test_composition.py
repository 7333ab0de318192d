"""Every method with every other: what makes sense trains, what does not is refused with the reason."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookflat import UserError
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.options import describe
from hookflat.testing import Found, TinyData, TinyModel, recipe, run_recipe, tiny_run
from hookflat.training import loop

LOSSES = ("at", "trades", "mart", "uat")
LATER_LOSSES = ("ikl", "lbgat", "mail", "dom")
PERTURBATIONS = ("", "awp", "random_weights", "weight_attack", "sam", "amp")
LATER_PERTURBATIONS = ("rwp", "gsam", "friendly_sam")
OPTIMIZERS = ("sgd", "adam", "entropy_sgd")
ATTACKS = ("apgd", "mi_fgsm", "n_fgsm", "free", "pgd_tau")
REGULARIZERS = {
    "adr": {},
    "activation": {},
    "augment": {"padding": 1},
    "averaging": {"decay": 0.5},
    "catastrophic_overfitting": {"examples": 8},
    "grad_align": {},
    "ignore_incorrect": {},
    "label_noise": {},
    "label_smoothing": {},
    "mixup": {},
    "prevent_label_leaking": {},
    "randaugment": {},
    "self_supervision": {"hidden": 4},
    "swa": {"start": 0.0},
    "unlabeled": {"fraction": 0.5},
    "weight_clipping": {"w_max": 0.1},
}
REFUSED = {
    frozenset(pair)
    for pair in [
        ("adr", "prevent_label_leaking"),
        ("amp", "entropy_sgd"),
        ("amp", "friendly_sam"),
        ("amp", "gsam"),
        ("amp", "sam"),
        ("awp", "weight_attack"),
        ("averaging", "swa"),
        ("awp", "rwp"),
        ("distillation", "rwp"),
        ("entropy_sgd", "friendly_sam"),
        ("entropy_sgd", "gsam"),
        ("entropy_sgd", "sam"),
        ("entropy_sgd", "swa"),
        ("free", "prevent_label_leaking"),
        ("free", "self_supervision"),
        ("friendly_sam", "gsam"),
        ("friendly_sam", "sam"),
        ("gsam", "sam"),
        ("hat", "prevent_label_leaking"),
        ("hat", "rwp"),
        ("ikl", "prevent_label_leaking"),
        ("ikl", "rwp"),
        ("lbgat", "prevent_label_leaking"),
        ("lbgat", "rwp"),
        ("mail", "prevent_label_leaking"),
        ("mail", "rwp"),
        ("mart", "rwp"),
        ("mixup", "prevent_label_leaking"),
        ("mixup", "self_supervision"),
        ("pgd_tau", "self_supervision"),
        ("prevent_label_leaking", "trades"),
        ("prevent_label_leaking", "uat"),
        ("random_weights", "weight_attack"),
        ("rwp", "trades"),
        ("rwp", "uat"),
        ("rwp", "weight_attack"),
    ]
}


def tables(loss="at", optimizer="sgd", plugins=None, attack="pgd", train=8):
    data = {"train": train, "test": 6}
    return {
        "data": data,
        "loss": {"name": loss},
        "optimizer": {"name": optimizer},
        "attack": {"name": attack, "eps": 0.1, "step_size": 0.05, "steps": 1},
        "plugins": plugins or {},
        "run": {"epochs": 1},
    }


def refused(names):
    return any(frozenset(pair) in REFUSED for pair in itertools.combinations(names, 2))


def checked(name, **where):
    with pytest.raises(UserError, match="does not go with"):
        load_recipe(recipe(tables(**where)), catalogue=Catalogue([TinyData, TinyModel]))


@pytest.mark.parametrize("perturbation", [*PERTURBATIONS, *LATER_PERTURBATIONS])
@pytest.mark.parametrize("loss", [*LOSSES, *LATER_LOSSES])
def test_every_combination_trains_for_an_epoch_or_is_refused(loss, perturbation):
    for optimizer, name in beside(loss, perturbation):
        plugins = ({perturbation: {}} if perturbation else {}) | ({name: REGULARIZERS[name]} if name else {})
        if refused([loss, optimizer, *plugins]):
            checked(name, loss=loss, optimizer=optimizer, plugins=plugins)
        else:
            train_an_epoch(tables(loss, optimizer, plugins))


def beside(loss, perturbation):
    """Optimizers and regularizers, as pairs: nearly any three of four kinds meet, since optimizers take turns.

    (Six of 922 do not, with prevent_label_leaking, which two losses exclude.) The later methods meet the others in
    pairs, with what is plain otherwise.
    """
    later = (loss in LATER_LOSSES) + (perturbation in LATER_PERTURBATIONS)
    regularizers = ("", *REGULARIZERS)
    if not later:
        begin = LOSSES.index(loss) + PERTURBATIONS.index(perturbation)
        for turn, name in enumerate(regularizers, begin):
            fitting = [o for o in OPTIMIZERS if not refused([loss, o, perturbation, name])] or OPTIMIZERS
            yield fitting[turn % len(fitting)], name
    elif later == 1 and (loss == "at" or not perturbation):
        yield from [*itertools.product(["sgd"], regularizers), *itertools.product(OPTIMIZERS[1:], [""])]
    else:
        yield "sgd", ""


def train_an_epoch(recipe_tables):
    """Hook by hook: the weights are back after the gradients, move, and stay finite."""
    with tiny_run(recipe_tables) as run:
        before = [p.detach().clone() for p in run.network.parameters()]
        for batch in run.batches():
            run.hook.transform_batch(run=run, batch=batch)
            objective = run.hook.attack_objective(run=run, batch=batch)
            x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
            as_before = Found.of(run.network, buffers=False)
            value = run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
            as_before.assert_unchanged(run.network, buffers=False)
            assert torch.isfinite(value), recipe_tables
            run.update(value)
            if not run.mid_cycle:
                run.hook.after_step(run=run)
        assert run.step == run.steps_per_epoch
        assert any(not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))
        assert all(p.isfinite().all() for p in run.eval_model().parameters())


KINDS = {
    "loss": (*LOSSES, *LATER_LOSSES, "hat", "distillation"),
    "optimizer": (*OPTIMIZERS, "adamw"),
    "attack": ("pgd", *ATTACKS),
    "perturbation": (*PERTURBATIONS[1:], *LATER_PERTURBATIONS),
    "regularizer": (*REGULARIZERS, "autoaugment", "extra_data", "random_resized_crop"),
}


def rows_with_every_pair():
    """Few rows of a method of each kind, that together hold all pairs that the test above leaves out and none refuses.

    Greedy: each row begins with a pair that is missing, and every kind adds the method that brings most of those.
    """
    new = {*ATTACKS, "adamw", "autoaugment", "extra_data", "random_resized_crop", "hat", "distillation"}
    pairs = (pair for kinds in itertools.combinations(KINDS.values(), 2) for pair in itertools.product(*kinds))
    left = {frozenset(pair) for pair in pairs if new & {*pair}} - REFUSED
    while left:
        row = sorted(min(left, key=sorted))
        for names in KINDS.values():
            fitting = [name for name in names if not refused([*row, name])]
            if fitting and not {*row} & {*names}:
                row.append(max(fitting, key=lambda name: sum(frozenset((name, other)) in left for other in row)))
        left -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        yield {kind: name for kind, names in KINDS.items() for name in row if name in names}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(run_recipe({}, tmp_path_factory.mktemp("teacher") / "run").folder)


@pytest.fixture(scope="module")
def extra_images(tmp_path_factory):
    path = tmp_path_factory.mktemp("extra") / "extra.npz"
    np.savez(path, image=np.arange(5 * 36, dtype=np.uint8).reshape(5, 6, 6), label=np.arange(5) % 3)
    return {"path": str(path)}


@pytest.mark.parametrize("row", rows_with_every_pair(), ids=lambda row: "-".join(row.values()))
def test_every_pair_trains_with_others_beside_it(row, teacher, extra_images):
    options = REGULARIZERS | {"extra_data": extra_images}
    plugins = {row["perturbation"]: {}, row["regularizer"]: options.get(row["regularizer"], {})}
    table = tables(row["loss"], row["optimizer"], plugins, row["attack"])
    table["attack"]["start"] = "uniform"  # TRADES's divergence has no gradient where MI-FGSM begins
    teachers = {"hat": ["helper"], "distillation": ["standard_teacher", "robust_teacher"]}
    table["loss"] |= dict.fromkeys(teachers.get(row["loss"], []), teacher)
    train_an_epoch(table)


@pytest.mark.parametrize("kind", ["perturbation", "regularizer"])
def test_two_of_one_kind_train_together_or_are_refused(kind, extra_images):
    """In both orders by turns."""
    options = REGULARIZERS | {"extra_data": extra_images}
    for number, pair in enumerate(itertools.combinations(KINDS[kind], 2)):
        plugins = {name: options.get(name, {}) for name in (pair if number % 2 else pair[::-1])}
        if refused(pair):
            checked(pair[0], plugins=plugins)
        else:
            train_an_epoch(tables(plugins=plugins))


def test_everything_that_excludes_something_is_refused_with_its_reason():
    catalogue = Catalogue()
    declared = {}
    for source in catalogue:
        cls = source.load()
        if cls.__module__.startswith("hookflat_plugins"):
            declared |= {frozenset((source.name, other)): why for other, why in getattr(cls, "excludes", {}).items()}
    assert declared.keys() == REFUSED
    for pair, reason in declared.items():
        slots = {kind_of(catalogue.find(n).load()): n for n in pair}
        plugins = {n: {} for k, n in slots.items() if k not in ("loss", "optimizer", "attack")}
        plugins |= {n: {} for n in pair if n not in slots.values()}
        where = {k: n for k, n in slots.items() if k in ("loss", "optimizer", "attack")}
        with pytest.raises(UserError, match="does not go with") as told:
            load_recipe(recipe(tables(plugins=plugins, **where)), catalogue=Catalogue([TinyData, TinyModel]))
        assert reason in str(told.value)
        assert all(repr(name) in str(told.value) for name in pair)


def test_two_losses_are_refused():
    with pytest.raises(UserError, match=r"plugin 'trades' is a loss: it belongs in \[loss\]"):
        load_recipe(recipe(tables(plugins={"trades": {}})), catalogue=Catalogue([TinyData, TinyModel]))


COMMUTING = {
    "activation": {},
    "averaging": {"decay": 0.5},
    "ignore_incorrect": {},
    "label_noise": {},
    "label_smoothing": {},
    "random_weights": {},
    "self_supervision": {"hidden": 0},
    "unlabeled": {"fraction": 0.5},
    "weight_clipping": {"w_max": 0.1},
}


def trained_weights(listed):
    """The measured network's weights after an epoch with plugins in the order of `listed`."""
    with tiny_run(tables(plugins={name: COMMUTING[name] for name in listed}, train=16)) as run:
        loop.train(run)
        return run.eval_model().state_dict()


@pytest.fixture(scope="module")
def weights_in_alphabetical_order():
    return trained_weights(sorted(COMMUTING))


@settings(max_examples=6, deadline=None)
@given(listed=st.permutations(sorted(COMMUTING)))
def test_the_order_of_commuting_plugins_does_not_matter(weights_in_alphabetical_order, listed):
    ours = trained_weights(listed)
    assert ours.keys() == weights_in_alphabetical_order.keys()
    assert all(torch.equal(ours[k], v) for k, v in weights_in_alphabetical_order.items())


OTHER = {
    "adr": {"decay": 0.5, "temperature": 4.0, "last_temperature": 3.0, "share": 0.1, "last_share": 0.3},
    "apgd": {
        **{"norm": "L2", "eps": 0.2, "eps_factor": 0.5, "steps": 3, "restarts": 1, "start": "zero"},
        **{"mode": "train", "precision": "bf16"},
    },
    "activation": {"act": "silu"},
    "adam": {"lr": 0.01, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.1},
    "adamw": {"lr": 0.01, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.5},
    "amp": {"eps": 0.01, "step_size": 0.1, "steps": 2},
    "at": {"fraction": 0.5},
    "augment": {"padding": 1, "flip": False, "fill": "mean"},
    "autoaugment": {"cutout": 0.2},
    "averaging": {"decay": 0.1, "statistics": "recalibrate"},
    "awp": {"xi": 0.5, "warmup": 0.5},
    "cosine": {"warmup": 2, "floor": 0.5},
    "cyclic": {"peak": 0.1, "cycles": 2},
    "dom": {"threshold": 1e-3, "start": 0.9},
    "entropy_sgd": {
        **{"lr": 0.5, "langevin_steps": 2, "inner_lr": 0.5, "gamma": 0.5, "scoping": 1.0},
        **{"noise": 0.1, "averaging": 0.2, "momentum": 0.0, "weight_decay": 0.1},
    },
    "free": {"norm": "L2", "eps": 0.2, "eps_factor": 0.5, "step_size": 0.02, "alpha": 0.3, "replays": 1},
    "friendly_sam": {"rho": 0.5, "sigma": 0.0, "decay": 0.1},
    "grad_align": {"weight": 2.0},
    "gsam": {"rho": 0.5, "rho_min": 0.01, "alpha": 0.0},
    "ikl": {"alpha": 1.0, "beta": 1.0, "temperature": 1.0},
    "label_noise": {"rate": 0.9},
    "label_smoothing": {"tau": 0.9},
    "lbgat": {"beta": 1.0},
    "mail": {"form": "at", "bias": -1.0, "slope": 3.0, "beta": 1.0, "start": 0.9},
    "mart": {"beta": 1.0},
    "mi_fgsm": {
        **{"norm": "L2", "eps": 0.2, "eps_factor": 0.5, "step_size": 0.02, "alpha": 0.3, "steps": 3, "decay": 0.0},
        **{"start": "uniform", "keep": "best", "mode": "train", "precision": "bf16"},
    },
    "mixup": {"mixup": 0.1, "cutmix": 0.1, "switch": 1.0},
    "multistep": {"milestones": [0.5], "factor": 0.5},
    "n_fgsm": {
        **{"norm": "L2", "eps": 0.2, "eps_factor": 0.5, "step_size": 0.02, "alpha": 0.3, "noise": 1.0},
        **{"mode": "train", "precision": "bf16"},
    },
    "pgd": {
        **{"norm": "L2", "eps": 0.2, "eps_factor": 0.5, "step_size": 0.02, "alpha": 0.3, "steps": 3, "restarts": 1},
        **{"start": "uniform", "keep": "last", "mode": "train", "precision": "bf16"},
    },
    "pgd_tau": {
        **{
            "norm": "L2",
            "eps": 0.2,
            "eps_factor": 0.5,
            "step_size": 0.02,
            "alpha": 0.3,
            "steps": 3,
            "start": "uniform",
        },
        **{"mode": "train", "precision": "bf16", "tau": 2, "grows": [0.0], "noise": 0.05},
    },
    "random_weights": {"xi": 0.1, "population": 2, "curriculum": "threshold", "threshold": 0.1, "clip": 0.01},
    "randaugment": {"operations": 1, "magnitude": 0.9},
    "rwp": {"xi": 0.5, "threshold": 1.0, "steps": 2, "warmup": 0.5},
    "sam": {"rho": 0.5, "adaptive": False, "eta": 0.5},
    "self_supervision": {"weight": 1.0, "share": 0.25, "hidden": 0},
    "sgd": {"lr": 0.01, "momentum": 0.5, "nesterov": False, "weight_decay": 0.1},
    "swa": {"start": 0.75, "every": 2},
    "trades": {"beta": 1.0},
    "uat": {"targets": "ot", "weight": 1.0},
    "unlabeled": {"fraction": 0.2, "share": 0.25, "images": 3},
    "weight_attack": {
        **{"xi": 0.5, "population": 2, "curriculum": "threshold", "threshold": 0.1, "clip": 0.01},
        **{"steps": 1, "step_size": 0.1, "start": "zero"},
    },
    "weight_clipping": {"w_max": 0.1},
}
"""Another value of every option that should change the trained weights."""

BASE = {
    "free": {"alpha": 0.0},
    "apgd": {"restarts": 2},
    "dom": {"threshold": 1.1, "start": 0.0},
    "mail": {"start": 0.0},
    "mi_fgsm": {"steps": 4},
    "n_fgsm": {"alpha": 0.0},
    "pgd": {"restarts": 2},
    "entropy_sgd": {"gamma": 0.1, "noise": 0.01},
    "pgd_tau": {"tau": 1},
    "random_weights": {"clip": 1.0},
    "sam": {"adaptive": True},
    "swa": {"start": 0.25, "every": 1},
    "weight_attack": {"clip": 1.0, "xi": 0.1},
    "weight_clipping": {"w_max": 0.2},
}
"""Options of the run that is compared with, where the defaults hide the effect."""

WITHOUT_EFFECT = {
    ("adamw", "layer_decay"): "test_vit.py",
    ("apgd", "alpha"): "it chooses its own steps",
    ("apgd", "compile"): "the same function",
    ("apgd", "step_size"): "it chooses its own steps",
    ("free", "compile"): "no pass is the attack's alone",
    ("free", "mode"): "no pass is the attack's alone",
    ("free", "precision"): "no pass is the attack's alone",
    ("free", "start"): "it goes on from the batch before",
    ("free", "steps"): "replays are its steps",
    ("mi_fgsm", "compile"): "the same function",
    ("n_fgsm", "compile"): "the same function",
    ("n_fgsm", "start"): "its noise is its start",
    ("n_fgsm", "steps"): "there is one",
    ("pgd", "compile"): "the same function",
    ("pgd", "cycle_detection"): "the same function, in fewer passes",
    ("pgd_tau", "compile"): "the same function",
    ("random_weights", "curriculum"): "told apart with its threshold",
    ("unlabeled", "path"): "test_unlabeled.py",
    ("unlabeled", "split"): "test_unlabeled.py",
    ("weight_attack", "curriculum"): "told apart with its threshold",
}


def in_place(name, options):
    kind = kind_of(Catalogue().find(name).load())
    slot = kind in ("loss", "optimizer", "schedule", "attack")
    table = {"name": name} | options if slot else options
    if kind == "attack":
        table = {"eps": 0.1, "step_size": 0.05, "steps": 2} | table
    where = {kind: table} if slot else {"plugins": {name: table}}
    return recipe({"run": {"epochs": 4}, "data": {"train": 16}} | where)


def weights_after(name, options):
    return weights_of(in_place(name, options))


def weights_of(recipe_tables):
    with tiny_run(recipe_tables) as run:
        for _ in range(run.epochs):
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
            run.hook.epoch_end(run=run)
        return [p.detach().clone() for p in run.eval_model().state_dict().values() if p.is_floating_point()]


@pytest.mark.parametrize("name", OTHER)
def test_every_option_is_used(name):
    """Turning one option changes the trained network."""
    declared = {o.name for o in describe(Catalogue().find(name).load())}
    assert declared == OTHER[name].keys() | {option for plugin, option in WITHOUT_EFFECT if plugin == name}
    base = BASE.get(name, {})
    plain = weights_after(name, base)
    for option, value in OTHER[name].items():
        if option == "threshold" and "curriculum" in OTHER[name]:
            turned = weights_after(name, base | {"curriculum": "threshold", "threshold": 1e-4})
            plain_here = weights_after(name, base | {"curriculum": "threshold", "threshold": 1e4})
        elif option == "curriculum":
            continue
        else:
            turned, plain_here = weights_after(name, base | {option: value}), plain
        assert any(not torch.equal(a, b) for a, b in zip(plain_here, turned, strict=True)), (name, option)


@pytest.mark.parametrize("plugin", ["ignore_incorrect", "prevent_label_leaking"])
@pytest.mark.parametrize("attack", ["pgd", *ATTACKS])
def test_what_plugins_ask_of_an_attack_is_done_or_refused(attack, plugin):
    if refused([attack, plugin]):
        checked(plugin, attack=attack, plugins={plugin: {}})
        return
    plain, asked = (tables(attack=attack, plugins=plugins, train=16) for plugins in ({}, {plugin: {}}))
    for table in (plain, asked):
        if attack == "pgd_tau":
            table["attack"]["tau"] = 1  # with 0 it moves only those whose prediction is the label
    assert any(not torch.equal(a, b) for a, b in zip(weights_of(plain), weights_of(asked), strict=True))


def test_no_training_method_is_left_out():
    """A new plugin belongs into the tables above."""
    named = {"constant", *OTHER, *itertools.chain(*KINDS.values())}
    for source in Catalogue():
        cls = source.load()
        kind = kind_of(cls)
        aside = ("data", "model", "measure", "figure", "tool", "model selection", "diagnostic", "other")
        if cls.__module__.startswith("hookflat_plugins") and kind not in aside:
            assert source.name in named, source.name


def test_an_ambitious_recipe_trains(tmp_path):
    """TRADES, AWP, self-supervision, unlabeled data, label smoothing and averaging at once."""
    plugins = {"awp": {}, "self_supervision": {}, "unlabeled": {}, "label_smoothing": {}, "averaging": {}}
    result = run_recipe({"loss": {"name": "trades"}, "plugins": plugins}, tmp_path / "run")
    assert "clean_error" in result.results.models["last"].test
