"""`hookflat eval`: any network, one command, results that can be trusted and resumed."""

import signal
import types

import pyarrow.parquet
import pytest
import torch
from commands import fails, hookflat
from safetensors.torch import load_file, save_file

import hookflat as library
from hookflat import UserError
from hookflat.errors import Stopped
from hookflat.evaluation.checkpoint import Checkpoint
from hookflat.functional.examples import Examples
from hookflat.recipe.catalogue import Catalogue
from hookflat.records.results import Results
from hookflat.records.weights import about_weights
from hookflat.testing import TinyData, TinyModel, run_recipe, tiny_run
from hookflat_plugins.digits import Digits
from hookflat_plugins.resnet_small import ResNetSmall

pytestmark = pytest.mark.usefixtures("short_autoattack")

PLUGINS = [TinyData, TinyModel]
PROTOCOL = """
[eval.robustness]
splits = ["train", "test"]
examples = 12
[eval.robustness.clean_error]
[eval.robustness.robust_loss]
steps = 2
restarts = 2
[eval.robustness.autoattack]
version = "custom"
attacks = ["apgd-ce", "apgd-dlr"]
batch_size = 5
[eval.flat]
[eval.flat.average_flatness]
xi = [0.1, "1/2"]
samples = 2
steps = 2
reference_restarts = 2
[eval.flat.worst_flatness]
attempts = 2
sweeps = 2
batch_size = 5
steps = 2
reference_restarts = 2
[eval.flat.clean_average_flatness]
samples = 2
[eval.flat.clean_worst_flatness]
attempts = 2
sweeps = 2
[eval.flat.hessian]
probes = 2
steps = 2
[eval.flat.sharpness]
steps = 2
[eval.flat.relative_flatness]
steps = 2
[eval.flat.landscape]
directions = 2
points = 3
steps = 1
[eval.flat.landscape_2d]
points = 3
steps = 1
"""


@pytest.fixture
def protocol(tmp_path):
    file = tmp_path / "protocol.toml"
    file.write_text(PROTOCOL)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with snapshots and an early-stopped network."""
    tables = {
        "plugins": {"snapshots": {"every": 1}, "early_stopping": {"holdout": 3, "every": 1, "steps": 1, "restarts": 1}}
    }
    return run_recipe(tables, tmp_path_factory.mktemp("runs") / "tiny").folder


def evaluate(*arguments, **options):
    return library.evaluate(*arguments, plugins=PLUGINS, **options)


def test_every_measure_of_a_run_folder_is_the_library_s(trained, protocol, tmp_path):
    evaluated = evaluate(trained, protocol=protocol, folder=tmp_path / "out").results
    assert evaluated == Results.read(tmp_path / "out" / "eval.json")
    entry = vars(evaluated.models["last"])
    with tiny_run({"plugins": {"early_stopping": {"holdout": 3}}}) as run:
        run.network.load_state_dict(load_file(trained / "model.safetensors"))
        net, attack = run.network, {"eps": 0.1, "step_size": 0.05, "seed": 0}
        for split in ("train", "test"):
            examples = Examples(getattr(run.data, split).part(0, 12))
            r = library.robust_loss(net, examples, steps=2, restarts=2, **attack)
            a = library.autoattack(
                net, examples, eps=0.1, version="custom", attacks=["apgd-ce", "apgd-dlr"], batch_size=5
            )
            assert entry[split]["rloss"] == pytest.approx(r.loss, abs=1e-6)
            assert entry[split]["rerr_pgd"] == r.error
            assert entry[split]["rerr_autoattack"] == a.error
            assert entry[split]["broken_by_apgd_ce"] == a.broken["apgd-ce"]
        examples = Examples(run.data.test)
        options = {"steps": 2, "reference": entry["test"]["rloss"], **attack}
        for xi in (0.1, 0.5):
            f = library.average_flatness(net, examples, xi=xi, samples=2, **options)
            assert entry["test"][f"average_flatness_xi{xi}"] == pytest.approx(f.flatness, abs=1e-6)
            assert entry["test"][f"average_flatness_xi{xi}_stderr"] == pytest.approx(f.standard_error, abs=1e-6)
        f = library.worst_flatness(net, examples, xi=0.00075, attempts=2, sweeps=2, batch_size=5, **options)
        assert entry["test"]["worst_flatness"] == pytest.approx(f.flatness, abs=1e-6)
        h = library.hessian_eigenvalues(net, examples, k=1, steps=2, tolerance=0.01, **attack)
        assert entry["test"]["hessian_robust_max"] == pytest.approx(h.largest[0], rel=1e-6)
        s = library.sharpness(net, examples, rho=0.05, steps=2, **attack)
        assert entry["test"]["sam_sharpness_robust"] == pytest.approx(s.sharpness, rel=1e-6)
        k = library.relative_flatness(net, examples, robust=False)
        assert entry["test"]["relative_flatness_clean"] == pytest.approx(k, rel=1e-6)
        line = library.landscape(net, examples, directions=2, points=3, steps=1, **attack)
    assert entry["gap"]["rloss"] == entry["train"]["rloss"] * -1 + entry["test"]["rloss"]
    assert set(entry["seconds"]) >= {"test/robust_loss", "train/autoattack", "test/landscape_2d"}
    table = pyarrow.parquet.read_table(tmp_path / "out" / "tables" / "last-test-landscape_layer.parquet").to_pydict()
    assert table["rloss_1"] == pytest.approx(line.loss[1].tolist(), abs=1e-6)
    for name in ("landscape_layer", "landscape_2d_filter"):
        assert (tmp_path / "out" / "figures" / f"last-test-{name}.svg").read_text().count("<path") > 5
        assert (tmp_path / "out" / "figures" / f"last-test-{name}.png").stat().st_size > 5000
    assert "apgd-ce" in (tmp_path / "out" / "logs" / "last-test-autoattack.txt").read_text()
    protocol_there = evaluated.protocol.stages["robustness"]
    assert protocol_there.examples == {"train": 12, "test": 9}
    assert protocol_there.measures["autoattack"]["batch_size"] == 5


def test_last_best_live_and_kept_epochs(trained, tmp_path):
    evaluated = evaluate(trained, which=["last", "best", "1", "2"], measures=["clean_error"], folder=tmp_path / "out")
    models = evaluated.results.models
    assert [models[which].epoch for which in ("last", "1", "2")] == [2, 1, 2]
    assert models["last"].test == models["2"].test
    kept = load_file(trained / "checkpoints" / "epoch-000002.safetensors")
    assert all(torch.equal(v, kept[k]) for k, v in load_file(trained / "model.safetensors").items())
    with pytest.raises(UserError, match="no network 7: it has last, best, 1, 2"):
        evaluate(trained, which="7", measures=["clean_error"], folder=tmp_path / "seven")
    assert not (tmp_path / "seven").exists()  # known before anything is loaded
    part = evaluate(trained, which=["7", "last"], measures=["clean_error"], folder=tmp_path / "part")
    assert list(part.results.models) == ["last"]


def test_networks_of_the_same_weights_are_told_by_their_own_names(trained, tmp_path, capsys):
    evaluate(trained, which=["2", "last", "1"], measures=["clean_error"], folder=tmp_path / "out", quiet=False)
    lines = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "clean_error" in line and "/3 " in line] == [
        "  1/3 2 test clean_error",
        "  2/3 last test clean_error",
        "  3/3 1 test clean_error",
    ]


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_numbers(trained, protocol, tmp_path, monkeypatch):
    whole = evaluate(trained, protocol=protocol, folder=tmp_path / "whole").results
    from hookflat.functional.work import Work

    passed, stop_at, counts = Work.passed, 400, []

    def counted(self, passes):
        passed(self, passes)
        if self.tally.passes > stop_at:
            raise Stopped(signal.SIGINT)

    monkeypatch.setattr(Work, "passed", counted)
    for _ in range(60):
        try:
            resumed = evaluate(trained, protocol=protocol, folder=tmp_path / "cut").results
            break
        except KeyboardInterrupt:
            counts.append(len(list((tmp_path / "cut").rglob(".unfinished/**/*.safetensors"))))
            stop_at += 400
    assert len(counts) > 3
    assert counts == sorted(counts)
    for split in ("train", "test"):
        assert vars(resumed.models["last"])[split] == vars(whole.models["last"])[split]
    assert not (tmp_path / "cut" / ".unfinished").exists()
    again = evaluate(trained, protocol=protocol, folder=tmp_path / "cut").results
    assert again == resumed


def test_results_of_another_protocol_or_network_are_not_overwritten(trained, tmp_path):
    out = tmp_path / "out"
    evaluate(trained, measures=["clean_error"], folder=out)
    before = (out / "eval.json").read_text()
    with pytest.raises(UserError, match="results of another protocol"):
        evaluate(trained, measures=["clean_error"], overrides={"eval.eps": 0.2}, folder=out)
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "recipe.toml").write_text((trained / "recipe.toml").read_text())
    weights = load_file(trained / "model.safetensors")
    save_file(weights, copied / "model.safetensors")
    evaluate(copied, measures=["clean_error"], folder=tmp_path / "of the copy")
    save_file({k: v + 1 if v.is_floating_point() else v for k, v in weights.items()}, copied / "model.safetensors")
    with pytest.raises(UserError, match="results of other weights"):
        evaluate(copied, measures=["clean_error"], folder=tmp_path / "of the copy")
    assert (out / "eval.json").read_text() == before


@pytest.mark.parametrize("other", ["model.act=gelu", "data.test=29", "normalize"])
def test_results_of_other_data_or_another_architecture_are_not_taken_for_the_same(small, tmp_path, other):
    """Neither leaves a trace in the weights."""
    _, _, file = small
    options = {"arch": "resnet_small", "data": "digits", "measures": ["clean_error"], "folder": tmp_path / "out"}
    evaluate(file, **options, overrides=SMALL)
    changed = {"normalize": "data"} if other == "normalize" else {}
    told = "other weights, or of these behind another --normalize" if changed else "another network or other data"
    with pytest.raises(UserError, match=f"holds the results of {told}"):
        evaluate(file, **options, **changed, overrides=SMALL if changed else [*SMALL, other])
    with pytest.raises(UserError, match="does not fit the network"):  # not that something was measured already
        evaluate(file, **options, overrides=[*SMALL, "model.width=16"])


def test_the_radius_is_the_run_s_unless_it_is_set(trained, tmp_path):
    own = evaluate(trained, measures=["robust_loss"], folder=tmp_path / "own").results.protocol
    assert (own.eps, own.step_size) == (0.1, 0.05)
    other = evaluate(trained, measures=["robust_loss"], overrides=["eval.eps=8/255"], folder=tmp_path / "other").results
    assert other.protocol.eps == 8 / 255


def test_shipped_protocols_are_the_paper_s(tmp_path):
    from hookflat.evaluation.checkpoint import Checkpoint, recipe_of

    (tmp_path / "net.pt").touch()
    source = Checkpoint(str(tmp_path / "net.pt"), arch="resnet_small", data="digits")
    paper = recipe_of(source, "paper", (), (), ())
    assert [s.examples for s in paper.stages.values()] == [10_000, 1000, 1000]
    assert all(s.splits == ["train", "test"] for s in paper.stages.values())
    measured = paper.measures["robustness"] | paper.measures["flatness"]
    assert (measured["robust_loss"].steps, measured["robust_loss"].restarts) == (20, 10)
    assert measured["autoattack"].version == "standard"
    flat, worst = measured["average_flatness"], measured["worst_flatness"]
    assert (flat.xi, flat.samples, flat.steps, flat.reference_restarts) == (0.5, 10, 20, 10)
    assert (worst.xi, worst.attempts, worst.sweeps, worst.weight_step_size, worst.batch_size) == (
        *(0.00075, 10, 20, 0.01),
        128,
    )
    assert paper.eval.eps == 8 / 255
    for name in ("quick", "full", "landscapes"):
        assert recipe_of(source, name, (), (), ()).stages


# --- networks from elsewhere ----------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A small network of ours in a file, without its normalisation, as a foreign script would save it."""
    torch.manual_seed(0)
    data = Digits(train=40, test=30).build_data()
    run = types.SimpleNamespace(data=data)
    net = ResNetSmall(width=8).build_model(run=run).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.net.state_dict().items()}}, tmp_path / "net.pt")
    return net, data, tmp_path / "net.pt"


SMALL = ["data.train=40", "data.test=30", "model.width=8", "eval.measures.examples=20"]


def test_data_and_network_of_a_file_of_plugins(small, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from hookflat_plugins.digits import Digits\nfrom hookflat_plugins.resnet_small import ResNetSmall\n"
        "class Mine(Digits):\n    pass\nclass MyNet(ResNetSmall):\n    pass\n"
    )
    options = {"overrides": SMALL, "measures": ["clean_error"]}
    own = {"arch": "my_net", "data": "mine", "plugins": [file], "folder": tmp_path / "a"}
    mine = library.evaluate(small[2], **own, **options).results
    known = evaluate(small[2], arch="resnet_small", data="digits", folder=tmp_path / "b", **options).results
    assert mine.models["last"].test == known.models["last"].test


@pytest.mark.parametrize("normalize", ["none", "data", "0.2/0.5"])
def test_a_file_of_weights_with_the_normalisation_that_is_asked_for(small, tmp_path, normalize):
    net, data, file = small
    options = {"arch": "resnet_small", "data": "digits", "normalize": normalize, "overrides": SMALL}
    evaluated = evaluate(file, measures=["clean_error"], folder=tmp_path / "out", **options).results
    x, y = data.test.part(0, 20).__getitems__(torch.arange(20))
    mean, std = {"none": (0, 1), "data": data.train.statistics(), "0.2/0.5": (0.2, 0.5)}[normalize]
    logits = net.net((x - mean) / std)
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    assert evaluated.models["last"].test["clean_loss"] == pytest.approx(loss, rel=1e-4)


def test_timm_networks(tmp_path, capsys):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    options = {"arch": "timm:resnet10t", "data": "digits", "overrides": [SMALL[0], SMALL[1], SMALL[3]]}
    evaluated = evaluate(
        tmp_path / "net.safetensors", measures=["clean_error"], folder=tmp_path / "out", **options, quiet=False
    ).results
    said = capsys.readouterr().out
    assert "model    timm, resnet10t, " in said  # which of its networks, and what will be taken off images
    assert " parameters, --normalize none\n" in said
    assert "measures: clean_error; on 20 test examples\n" in said
    data = Digits(train=40, test=30).build_data()
    x, y = data.test.part(0, 20).__getitems__(torch.arange(20))
    loss = torch.nn.functional.cross_entropy(net.eval()(x), y).item()
    assert evaluated.models["last"].test["clean_loss"] == pytest.approx(loss, rel=1e-3)


def test_rescaled_networks_measure_alike(tmp_path):
    """`hookflat rescale` of a run folder, and the quick protocol on both."""
    folder = run_recipe({"run": {"epochs": 1}}, tmp_path / "runs" / "tiny").folder
    from hookflat.evaluation.checkpoint import Checkpoint
    from hookflat.evaluation.rescaling import rescaled

    with pytest.raises(UserError, match="no plugin is called 'tiny_data'"):
        rescaled(Checkpoint(str(folder)), 0.5, tmp_path / "x")
    out = tmp_path / "runs" / "tiny-x0.5"
    assert rescaled(Checkpoint(str(folder)), 0.5, out, catalogue=Catalogue(PLUGINS)) == 1
    assert rescaled(Checkpoint(str(out)), 3.0, tmp_path / "again", catalogue=Catalogue(PLUGINS)) == 1
    assert about_weights(tmp_path / "again" / "model.safetensors")["rescaled"] == 1.5
    with pytest.raises(UserError, match="exists already"):
        rescaled(Checkpoint(str(folder)), 0.5, out)
    one, other = (evaluate(f, protocol="quick", folder=tmp_path / f.name).results.models["last"] for f in (folder, out))
    assert other.weights != one.weights
    for key, value in one.test.items():
        assert other.test[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_goes_on(small, tmp_path):
    _, _, file = small
    arguments = [part for value in SMALL for part in ("--set", value)]
    arguments += ["--arch", "resnet_small", "--data", "digits", "--measure", "clean_error", "--measure", "robust_loss"]
    arguments += ["--set", "eval.measures.robust_loss.restarts=1"]
    done = hookflat("eval", file, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RErr (PGD), test" in done.stdout
    assert "2/2 last test robust_loss" in done.stdout
    assert (tmp_path / "evals" / f"{file.parent.name}-net-clean_error-robust_loss-last" / "eval.json").exists()
    assert "measured already" in hookflat("eval", file, *arguments, cwd=tmp_path).stdout
    network = ["--arch", "resnet_small", "--data", "digits", "--set", "model.width=8"]
    done = hookflat("rescale", file, "2", *network, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 convolutions scaled by 2" in done.stdout
    assert (tmp_path / "net-x2.safetensors").exists()


def test_what_is_wrong_is_told(small, tmp_path):
    _, _, file = small
    known = {"arch": "resnet_small", "data": "digits", "measures": ["clean_error"]}
    for options, told in (
        ({}, "say what network it is for, --arch"),
        ({"arch": "resnet_small"}, "say what to measure on, --data"),
        ({"arch": "resnet_small", "data": "digits", "protocol": "papr"}, "no protocol 'papr'"),
        (known | {"measures": ["robust_los"]}, "did you mean 'robust_loss'"),
        (known, r"\(8, 1, 3, 3\) in the file, \(16, 1, 3, 3\) in the network"),
        (known | {"overrides": SMALL, "normalize": "1,2/3"}, "--normalize 1,2/3: should be none, data"),
        (known | {"overrides": SMALL, "normalize": "125/63"}, r"images are in \[0, 1\] here: divide both by 255"),
        (known | {"overrides": SMALL, "normalize": "0.4/0"}, "--normalize 0.4/0: a deviation is above 0"),
        (known | {"overrides": [*SMALL, "attack.eps=0.1"]}, r"without \[attack\]; .* in \[eval\]: eval\.eps"),
        (known | {"measures": ["hessain"]}, "--measure 'hessain': no plugin is called 'hessain'"),
        (known | {"overrides": "data.test=9"}, "overrides: should be a dict or a list"),
        (known | {"which": "best"}, "only a run folder has several networks"),
        (known | {"overrides": ["eval.measures.autoattack.version=custom"]}, "attacks goes with version"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(file, folder=tmp_path / "out", **options)
    for model, label in (
        ("a/model.pt", "a-model"),
        ("model.pt", "model"),
        ("../model.pt", "model"),
        ("a/b/../m.pt", "m"),
    ):
        assert Checkpoint(model).label == label
    with pytest.raises(UserError, match="a recipe: train it"):
        evaluate("recipes/at.toml")
    with pytest.raises(UserError, match=r"without \[loss\]"):
        library.load(file, arch="resnet_small", data="digits", overrides={"loss.beta": 3})
    with pytest.raises(UserError, match="neither a run folder, nor a file"):
        evaluate(tmp_path / "nothing.pt", **known)
    with pytest.raises(UserError, match=r"it has no recipe\.toml"):
        evaluate(tmp_path)
    assert "its recipe names data and network" in fails(2, "eval", tmp_path, "--arch", "x", cwd=tmp_path)
    for damaged, table in (("[run]\nseed = 1\n", "data"), ("eval = 3\n[data]\n[model]\n", "eval")):
        (tmp_path / "recipe.toml").write_text(damaged)
        with pytest.raises(UserError, match=rf"recipe\.toml is not what hookflat writes: it has no table \[{table}\]"):
            evaluate(tmp_path)
    (tmp_path / "recipe.toml").write_text('losq = 3\n[data]\nname = "digits"\n[model]\nname = "resnet_small"\n')
    for command in (("eval", tmp_path), ("rescale", tmp_path, 2)):
        assert "recipe.toml: losq: unknown table (did you mean 'loss'?)" in fails(2, *command, cwd=tmp_path)


# --- measures in recipes --------------------------------------------------------------------------------------------
