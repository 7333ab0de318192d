"""A network for others: its card, the file that plain torch loads, and the hub through a stand-in of its API."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import fails, hookflat
from hub_stand_in import stand_in
from safetensors.torch import load_file

import hookflat as library
from hookflat.errors import UserError
from hookflat.recipe.catalogue import Catalogue
from hookflat.records.folder import RunFolder
from hookflat.sharing.card import Card
from hookflat.sharing.exporting import export
from hookflat.sharing.hub import push

NETWORK = '''
"""A network that is exported in no time."""

from dataclasses import dataclass

from hookflat import Normalized, hookimpl
from torch import nn


@dataclass(eq=False)
class Plain:
    """One convolution."""

    @hookimpl
    def build_model(self, run):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
        return Normalized(net, *run.data.train.statistics())
'''
FEW = {
    "model.name": "plain",
    "run.epochs": 1,
    "data.train": 64,
    "plugins.figures.enabled": False,
    "plugins.early_stopping.holdout": 20,
    "plugins.early_stopping.every": 1,
    "eval.curves.enabled": False,
    "eval.through_training.enabled": False,
    "eval.final.examples": 20,
    "eval.final.robust_loss": {"steps": 2, "restarts": 1},
    "eval.final_flatness.enabled": False,
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugin") / "plain.py"
    file.write_text(NETWORK)
    return file


@pytest.fixture(scope="module")
def trained(plugin, tmp_path_factory):
    """A complete run."""
    folder = tmp_path_factory.mktemp("runs") / "plain-0"
    library.run("at", overrides=FEW, plugins=[plugin], folder=folder)
    return folder


@pytest.fixture(scope="module")
def shared(trained, plugin, tmp_path_factory):
    """What `hookflat card` writes of it."""
    folder = tmp_path_factory.mktemp("shared") / "hub"
    done = hookflat("card", trained, "somebody/plain", "--plugin", plugin, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "network.pt2" in done.stdout
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in, and a client that knows no other hub, with an empty cache and a token."""
    from huggingface_hub import constants

    with stand_in() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def test_the_card_says_what_the_results_say(trained, shared, plugin):
    card = (shared / "README.md").read_text()
    results = json.loads((trained / "eval.json").read_text())
    last = results["models"]["last"]["test"]
    for expected in (
        f"| clean error, test | {100 * last['clean_error']:.1f} % |",
        f"| RErr (PGD), test | {100 * last['rerr_pgd']:.1f} % |",
        "- robust\\_loss: steps 2, restarts 1",
        "the first 20 test examples",
        "eps 0.15 (L-infinity), step size 0.0335, seed 0",
        'hf_hub_download("somebody/plain", "network.pt2")',
        'hookflat.load("hub:somebody/plain")',
        "hookflat eval hub:somebody/plain",
        "## Intended use, and limits",
        "| loss | at |",
    ):
        assert expected in card, card
    front = card.split("---")[1]
    fields = {line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in front.strip().splitlines()}
    (entry,) = fields["model-index"][0]["results"]
    assert entry["dataset"]["name"] == "digits"
    assert {m["type"]: m["value"] for m in entry["metrics"]} == pytest.approx(last)
    assert str(Path.home()) not in card
    assert "it needs plain.py too" in card
    for folder in (trained.parent, plugin.parent):
        assert str(folder) not in card


@pytest.mark.parametrize("content", ["", "[1]", '{"packages": [1], "gpus": 7}', '{"gpus": [{}]}', "[" * 100_000])
def test_a_card_of_a_run_whose_environment_is_damaged(trained, plugin, tmp_path, content):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "environment.json").write_text(content)
    card = Card.of(RunFolder(run), Catalogue([plugin]), shape=(1, 8, 8), exported="network.pt2").text()
    assert "The file was written by torch ?" in card


def test_a_full_disk_is_told_as_that(trained, plugin, tmp_path, monkeypatch):
    def full(file, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    monkeypatch.setattr("shutil.copyfile", full)
    assert "disk full: " in fails(3, "card", trained, "--plugin", plugin, "--out", tmp_path / "hub")


def test_the_client_of_the_hub_reads_the_card(shared):
    from huggingface_hub import ModelCard

    data = ModelCard.load(shared / "README.md").data
    assert data.library_name == "hookflat"
    assert data.model_name == "somebody/plain"
    assert {result.metric_type for result in data.eval_results} >= {"clean_error", "rerr_pgd"}


def test_plain_torch_loads_the_network_as_the_card_says(shared, plugin, tmp_path):
    """In a process where hookflat cannot be imported; logits and gradients are those of the network."""
    recipe = library.load_recipe(shared / "recipe.toml", catalogue=Catalogue([plugin]))
    network = library.network_of(recipe, str(shared)).eval()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    torch.save(x.detach(), tmp_path / "x.pt")
    code = f"""
import sys; sys.modules["hookflat"] = None
import torch
from safetensors.torch import load_file
network = torch.export.load(r"{shared / "network.pt2"}").module()
x = torch.load(r"{tmp_path / "x.pt"}").requires_grad_()
logits = network(x)
torch.save((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]), r"{tmp_path / "y.pt"}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs, their_gradient = torch.load(tmp_path / "y.pt")
    torch.testing.assert_close(theirs, logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(their_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_pushed_and_fetched_it_is_the_same_network(trained, plugin, hub, tmp_path):
    done = hookflat("push", trained, "somebody/plain", "--plugin", plugin, "--out", tmp_path / "hub")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/somebody/plain" in done.stdout
    assert hub.tokens == {"Bearer hf_secret"}
    theirs = hub.repos["somebody/plain"]
    best = ["checkpoints/best.safetensors"]
    assert sorted(theirs) == sorted(
        ["README.md", "eval.json", "model.safetensors", "network.pt2", "recipe.toml", *best]
    )
    assert theirs["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    assert push(tmp_path / "hub", "somebody/plain", private=True).endswith("/somebody/plain")  # again is no error

    measure = ["--measure", "clean_error", "--plugin", plugin, "--json"]
    fetched = hookflat("eval", "hub:somebody/plain", *measure, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    here = hookflat("eval", trained, *measure, "--out", tmp_path / "here")
    assert json.loads(fetched.stdout)["models"]["last"]["test"] == json.loads(here.stdout)["models"]["last"]["test"]
    assert (tmp_path / "evals" / "hub-somebody-plain-clean_error-last" / "eval.json").is_file()
    loaded = library.load("hub:somebody/plain", which="best", plugins=[plugin])  # as the card says
    weights = load_file(trained / "checkpoints" / "best.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.network.state_dict().items())
    fetched = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "/resolve/" in path}
    assert fetched == {"recipe.toml", "eval.json", "model.safetensors", "best.safetensors"}


def test_what_the_hub_refuses_ends_in_a_line(trained, shared, hub, tmp_path, monkeypatch):
    assert "hub:no/body cannot be fetched: " in fails(2, "eval", "hub:no/body", cwd=tmp_path)
    hub.repos["some/weights"] = {"pytorch_model.bin": b"x"}
    assert "was not pushed by hookflat" in fails(2, "eval", "hub:some/weights", cwd=tmp_path)
    assert "should be USER/NAME" in fails(2, "push", trained, "plain")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"some/other cannot be pushed: .*hf auth login"):
        push(shared, "some/other")
    hub.shutdown()
    hub.server_close()
    assert "hub:some/other cannot be fetched: " in fails(2, "eval", "hub:some/other", cwd=tmp_path)


def test_a_run_that_is_not_complete_is_not_shared(tmp_path, trained):
    assert "is no run folder" in fails(2, "card", tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.toml").write_text((trained / "recipe.toml").read_text())
    assert "is not complete" in fails(2, "card", begun)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    weights = (trained / "model.safetensors").read_bytes()
    for folder in (tmp_path / "thesis", trained):  # a run's own folder is not overwritten
        assert "holds other files" in fails(2, "card", trained, "--out", folder)
    assert (trained / "model.safetensors").read_bytes() == weights


def test_a_network_that_torch_cannot_follow_is_told(tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"torch.export cannot follow the network"):
        export(Branching(), torch.rand(4, 1, 2, 2), tmp_path / "network.pt2")
    assert list(tmp_path.iterdir()) == []
