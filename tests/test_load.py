"""`hookflat.load`: in a notebook, a trained network with its images, from all that `hookflat eval` takes."""

import pytest
import torch
from safetensors.torch import load_file

import hookflat
from hookflat import UserError
from hookflat.testing import TinyData, TinyModel, run_recipe

PLUGINS = [TinyData, TinyModel]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    plugins = {"snapshots": {"every": 1}, "early_stopping": {"holdout": 3, "every": 1, "steps": 1, "restarts": 1}}
    return run_recipe({"plugins": plugins}, tmp_path_factory.mktemp("runs") / "tiny").folder


@pytest.mark.parametrize(
    ("which", "file"),
    [
        ("last", "model.safetensors"),
        ("best", "checkpoints/best.safetensors"),
        ("1", "checkpoints/epoch-000001.safetensors"),
    ],
)
def test_a_network_of_a_run_has_its_weights_images_and_threat(trained, which, file):
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    loaded = hookflat.load(trained, which=which, plugins=PLUGINS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not any(module.training for module in loaded.network.modules())
    weights = load_file(trained / file)
    assert loaded.network.state_dict().keys() == weights.keys()
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert len(loaded.data.test) == 9  # of twelve, three select the early-stopped network
    recipe = hookflat.RunFolder(trained).read_recipe()["eval"]
    assert (loaded.attack.threat.eps, loaded.attack.step_size) == (recipe["eps"], recipe["step_size"])
    assert loaded.about["epoch"] == (1 if which == "1" else hookflat.RunFolder(trained).load_network(which)[1]["epoch"])


def test_its_images_are_what_measures_and_attacks_take(trained):
    loaded = hookflat.load(trained, plugins=PLUGINS)
    net, test = loaded.network, loaded.data.test
    x, y = test[:9]
    assert torch.equal(x, test.x.float() / 255)
    assert torch.equal(y, test.y)
    one = test[3]
    assert torch.equal(one[0], x[3])
    assert one[1] == y[3]
    attack = {"eps": 0.1, "step_size": 0.05, "steps": 2, "seed": 0}
    for images in (test, test.part(2, 7)):
        pair = images[:]
        ours, theirs = (hookflat.robust_loss(net, given, **attack) for given in (images, pair))
        assert torch.equal(ours.per_example.loss, theirs.per_example.loss)
        flat = [hookflat.average_flatness(net, given, samples=2, **attack).flatness for given in (images, pair)]
        assert flat[0] == flat[1]
        options = {"eps": 0.1, "version": "custom", "attacks": ["apgd-ce"], "seed": 0}
        assert hookflat.autoattack(net, images, **options).error == hookflat.autoattack(net, pair, **options).error
        assert (
            hookflat.trust(net, images, queries=0, **attack).error
            == hookflat.trust(net, pair, queries=0, **attack).error
        )


def test_a_file_of_weights_is_loaded_as_eval_measures_it(trained, tmp_path):
    options = {"arch": "tiny_model", "data": "tiny_data", "plugins": PLUGINS}
    file = trained / "model.safetensors"
    loaded = hookflat.load(file, **options)
    measured = hookflat.evaluate(file, measures=["clean_error"], folder=tmp_path / "out", **options).results
    result = hookflat.robust_loss(loaded.network, loaded.data.test, attack=loaded.attack, restarts=0)
    assert result.clean_error == measured.models["last"].test["clean_error"]
    assert loaded.about == {}


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ("run", {"which": "7"}, "has no network 7: it has last, best, 1, 2"),
        ("run", {"which": "newest"}, "should be last, best, live or the number of an epoch"),
        ("run", {"arch": "tiny_model"}, "its recipe names data and network"),
        ("nowhere", {}, "neither a run folder, nor a file"),
    ],
)
def test_what_cannot_be_loaded_is_said(trained, model, options, match):
    with pytest.raises(UserError, match=match):
        hookflat.load(trained if model == "run" else model, plugins=PLUGINS, **options)


@pytest.mark.parametrize(
    ("sets", "step"), [([], 0.007), (["eval.eps=0.3"], 0.0669375), (["eval.step_size=0.01"], 0.01)]
)
def test_a_step_of_an_evaluation_that_nobody_chose_follows_the_radius(trained, sets, step):
    file = trained / "model.safetensors"
    loaded = hookflat.load(file, arch="tiny_model", data="tiny_data", overrides=sets, plugins=PLUGINS)
    assert loaded.attack.step_size == pytest.approx(step, rel=1e-12)


def test_what_a_notebook_shows_is_a_line(trained):
    loaded = hookflat.load(trained, plugins=PLUGINS)
    assert repr(loaded.data.test) == "Images(9 of 1x6x6)"
    assert repr(loaded).startswith("Loaded(network=<Normalized, ")
    r = hookflat.robust_loss(loaded.network, loaded.data.test, attack=loaded.attack)
    f = hookflat.average_flatness(loaded.network, loaded.data.test, attack=loaded.attack.but(restarts=1), samples=2)
    a = hookflat.autoattack(loaded.network, loaded.data.test, eps=0.1, version="custom", attacks=["apgd-ce"])
    e = hookflat.hessian_eigenvalues(loaded.network, loaded.data.test, k=2, robust=False)
    for value in (loaded, r, f, a, e, hookflat.margins(loaded.network, loaded.data.test)):
        assert len(repr(value)) < 500
        assert "tensor" not in repr(value)
    assert f"RobustLoss(loss={r.loss:.4g}, error={r.error:.4g}, " in repr(r)
    assert "wrong=<9>" in repr(r)
