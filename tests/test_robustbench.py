"""Networks of RobustBench: a small package with the released one's imports, and (slow) the released one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch
from commands import fails
from torch import nn

from hookflat import UserError, evaluate
from hookflat.evaluation import robustbench
from hookflat.evaluation.checkpoint import Checkpoint, recipe_of
from hookflat.recipe.shipped import recipes_folder
from hookflat.studies.execution import make
from hookflat.studies.study import read_study
from hookflat_plugins.digits import Digits

LIKE_THE_RELEASED = {
    "__init__.py": "from . import loaders, evaluation",
    "loaders.py": "import pkg_resources\nfile = pkg_resources.resource_filename(__name__, 'list.txt')",
    "evaluation.py": "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState",
    "model_zoo.py": """
from enum import Enum
Data, Kind = Enum("Data", {"c10": "cifar10", "c100": "cifar100"}), Enum("Kind", {"linf": "Linf", "l2": "L2"})
model_dicts = {
    Data.c10: {Kind.linf: {"A2019": {}, "B2020": {}}, Kind.l2: {"C2021": {}}},
    Data.c100: {Kind.l2: {"D": {}}},
}
""",
    "utils.py": """
from pathlib import Path
import torch
def load_model(name, model_dir, dataset, threat_model):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    net.load_state_dict(torch.load(Path(model_dir) / dataset / threat_model / f"{name}.pt"))
    return net.eval()
""",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the names that the released one imports; what it needs is there, empty where it is not."""
    for folder, files in (
        ("package/robustbench", LIKE_THE_RELEASED),
        ("needs", dict.fromkeys((f"{name}.py" for name in robustbench.NEEDS[1:] if not find_spec(name)), "")),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    places = [str(tmp_path / name) for name in ("package", "needs")]
    monkeypatch.setattr(sys, "path", [*places, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*places, os.environ.get("PYTHONPATH")])))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in robustbench.NEEDS:
            del sys.modules[name]


def weights(file, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), file)
    return net


MEASURED = {
    "data": "digits",
    "measures": ["clean_error"],
    "overrides": ["data.train=40", "data.test=30", "eval.measures.examples=20"],
}


def test_a_network_is_measured_through_stand_ins_that_are_gone_afterwards(package):
    net = weights(package / "models/cifar10/L2/C2021.pt")
    there = {name: sys.modules.get(name) for name in ("autoattack", "autoattack.state", "pkg_resources")}
    evaluated = evaluate("robustbench:cifar10/L2/C2021", folder=package / "out", **MEASURED).results
    x, y = Digits(train=40, test=30).build_data().test.part(0, 20).__getitems__(torch.arange(20))
    assert evaluated.models["last"].test["clean_loss"] == pytest.approx(nn.functional.cross_entropy(net(x), y).item())
    assert (evaluated.protocol.norm, evaluated.protocol.eps, evaluated.protocol.step_size) == ("L2", 0.5, 0.1)
    assert {name: sys.modules.get(name) for name in there} == there
    if there["autoattack"] is None:
        assert sys.modules["robustbench.evaluation"].AutoAttack is pyautoattack.AutoAttack
    assert Path(sys.modules["robustbench.loaders"].file) == package / "package/robustbench/list.txt"


def test_packages_that_are_missing_are_named_before_torch_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(robustbench, "NEEDS", ("robustbench", "pandas", "no_such_package"))
    told = fails(2, "eval", "robustbench:Carmon2019Unlabeled", "--data", "digits", cwd=tmp_path)
    assert "no_such_package" in told
    assert "pandas," not in told
    assert "pip install --no-deps robustbench==1.1.1" in told
    with pytest.raises(UserError, match="needs the package"):
        evaluate("robustbench:Carmon2019Unlabeled", folder=tmp_path / "no", **MEASURED)
    code = (
        "import sys, hookflat.evaluation.robustbench as r; r.read('robustbench:X'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_import_that_fails_otherwise_is_told(package):
    (package / "package/robustbench/evaluation.py").write_text("import surely_not_there")
    with pytest.raises(UserError, match="cannot be imported: No module named 'surely_not_there'"):
        robustbench.check("robustbench:A2019")
    assert "autoattack.state" not in sys.modules or "autoattack" in sys.modules


@pytest.mark.parametrize(
    ("spec", "more", "threat"),
    [
        ("A2019", [], ("Linf", 8 / 255, 0.007)),
        ("cifar100/L2/D", [], ("L2", 0.5, 0.1)),
        ("cifar100/L2/D", ["eval.norm=Linf"], ("Linf", 8 / 255, 0.007)),
        ("cifar10/L2/C2021", ["eval.eps=1"], ("L2", 1.0, 0.1)),
        ("cifar10/corruptions/E", [], ("Linf", 8 / 255, 0.007)),
        ("imagenet/F", [], ("Linf", 4 / 255, 1 / 255)),
    ],
)
def test_a_network_is_measured_under_the_threat_of_its_leaderboard(package, spec, more, threat):
    source = Checkpoint(f"robustbench:{spec}", data="digits")
    options = recipe_of(source, "paper", (), more, ()).eval
    assert (options.norm, options.eps, options.step_size) == pytest.approx(threat)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("A209", r"no such network for cifar10, Linf \(did you mean 'A2019'"),
        ("C2021", "there is robustbench:cifar10/L2/C2021"),
        ("cifar100/Linf/D", "no leaderboard cifar100/Linf .*cifar100/L2"),
        ("mnist/D", "no leaderboard mnist/Linf"),
        ("a/b/c/d", "should be robustbench:ID, "),
        ("cifar10//A2019", "should be robustbench:ID, "),
    ],
)
def test_a_network_that_is_not_there(package, spec, match):
    with pytest.raises(UserError, match=match):
        robustbench.check(f"robustbench:{spec}")


def test_weights_that_do_not_load(package):
    file = package / "models/cifar10/Linf/A2019.pt"
    with pytest.raises(UserError, match=r"FileNotFoundError.*belong in models/cifar10/Linf/A2019\.pt"):
        robustbench.load("robustbench:A2019")
    weights(file)
    assert not robustbench.load("robustbench:cifar10/Linf/A2019").training
    torch.save({"state_dict": {}, "args": Path("x")}, file)
    with pytest.raises(UserError, match="no file of tensors alone"):
        robustbench.load("robustbench:A2019")
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="cannot load it: RuntimeError"):
        robustbench.load("robustbench:A2019")
    weights(file)
    images = {"x": np.zeros((10, 4, 4), dtype=np.uint8), "y": np.arange(10)}
    for split in ("train", "test"):
        np.savez(package / f"{split}.npz", **images)
    with pytest.raises(UserError, match="does not take the data's images"):
        evaluate("robustbench:A2019", folder=package / "x", data=str(package), measures=["clean_error"])


def test_leaderboards_of_a_study(package):
    (package / "zoo.toml").write_text((recipes_folder() / "studies" / "zoo.toml").read_text())
    read = read_study(package / "zoo.toml")
    assert [job.name for job in read.jobs] == ["cifar10-A2019", "cifar10-B2020"]
    (command,) = read.jobs[1].commands()
    assert command[3:6] == ["eval", "robustbench:cifar10/B2020", "--protocol"]
    assert read.jobs[1].label.early_stopped
    for spec, specs in (
        ("cifar10/L2/*", ["robustbench:cifar10/L2/C2021"]),
        ("B*", ["robustbench:cifar10/B2020"]),
        ("cifar10/Linf/*", ["robustbench:cifar10/A2019", "robustbench:cifar10/B2020"]),
        ("cifar100/L2/D", ["robustbench:cifar100/L2/D"]),
    ):
        (package / "zoo.toml").write_text(
            f'[study]\nprotocol = "quick"\n[[study.checkpoints]]\nmodels = ["robustbench:{spec}"]\ndata = "digits"'
        )
        assert [job.source.model for job in read_study(package / "zoo.toml").jobs] == specs
    for spec, match in (("cifar100/*", "no leaderboard cifar100/Linf"), ("X*", "is called so")):
        with pytest.raises(UserError, match=match):
            robustbench.matching(f"robustbench:{spec}")


A_ROW = """[study]
protocol = "few.toml"
[[study.checkpoints]]
models = ["robustbench:cifar100/L2/D"]
data = "digits"
set = { "data.train" = 40, "data.test" = 30 }
"""


def test_a_study_measures_a_network_of_robustbench(package):
    net = weights(package / "models/cifar100/L2/D.pt")
    (package / "few.toml").write_text("[eval.few]\nexamples = 20\n[eval.few.clean_error]")
    (package / "row.toml").write_text(A_ROW)
    said = []
    assert make(read_study(package / "row.toml"), say=said.append) == {"cifar100-L2-D": "done"}, said
    results = json.loads((package / "runs/row/cifar100-L2-D/eval.json").read_text())
    x, y = Digits(train=40, test=30).build_data().test.part(0, 20).__getitems__(torch.arange(20))
    loss = nn.functional.cross_entropy(net(x), y).item()
    assert results["models"]["last"]["test"]["clean_loss"] == pytest.approx(loss)
    assert results["protocol"]["norm"] == "L2"


@pytest.mark.slow
def test_the_released_package(tmp_path):
    """Version 1.1.1 in a folder of its own beside this environment, and a stand-in for its downloads."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "package")]
    needs = ["geotorch", "torchdiffeq", "requests", "urllib3", "certifi", "charset-normalizer", "idna", "pandas"]
    if subprocess.run([*install, "robustbench==1.1.1", *needs], capture_output=True, check=False).returncode:
        pytest.skip("the package registry cannot be reached")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "gdown.py").write_text((Path(__file__).parent / "robustbench_downloads.py").read_text())
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=images, y=np.arange(10))
    paths = os.pathsep.join(str(p) for p in (tmp_path / "downloads", Path(__file__).parent, tmp_path / "package"))
    environment = os.environ | {"PYTHONPATH": paths, "HOOKFLAT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    file = str(Path(__file__).parent / "with_robustbench.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini=addopts=", file]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
