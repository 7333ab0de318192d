"""Two processes against one: the same global batches, the same weights up to float addition order."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hookflat"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "hookflat"),
]
ONE = [sys.executable, "-m", "hookflat"]

RECIPE = """
data = {{ name = "digits", train = 48, test = 60 }}
model = {{ name = "resnet_small", width = 8, norm = "group" }}
optimizer = {{ name = "{optimizer}" }}
schedule = {{ name = "multistep" }}
attack = {{ name = "pgd", eps = 0.15, step_size = 0.05, steps = 2 }}
loss = {{ name = "{loss}" }}
run = {{ epochs = 2, batch_size = 16, threads = 1 }}
{plugins}
[eval.curves]
every = 1
splits = ["train", "test"]
examples = 33
[eval.curves.robust_loss]
steps = 2
restarts = 2
[eval.final]
examples = 33
[eval.final.average_flatness]
samples = 2
steps = 2
"""


def start(launcher, recipe, folder, *arguments, **environment):
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [*launcher, "run", str(recipe), "--out", str(folder), *map(str, arguments)],
        env={k: v for k, v in env.items() if v is not None},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write(tmp_path, loss="at", optimizer="sgd", plugins=""):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(loss=loss, optimizer=optimizer, plugins=plugins))
    return path


ALL = "[plugins.awp]\n[plugins.label_noise]\n[plugins.averaging]\ndecay = 0.5\n"
POOL = "[plugins.unlabeled]\nshare = 0.5\nfraction = 0.3\n"
TURNED = "[plugins.self_supervision]\nhidden = 0\n[plugins.sam]\n[plugins.swa]\nstart = 0.5\n"
ATTACKED = '[plugins.weight_attack]\npopulation = 2\ncurriculum = "threshold"\nthreshold = 9\n'
STOPPING = "[plugins.early_stopping]\nholdout = 11\nevery = 1\nsteps = 2\n[plugins.figures]\n"


@pytest.mark.parametrize(
    ("launcher", "loss", "optimizer", "plugins"),
    [
        (TORCHRUN, "at", "sgd", STOPPING + ATTACKED),
        (TORCHRUN, "trades", "sgd", "[plugins.augment]\npadding = 1\n"),
        (ACCELERATE, "at", "sgd", ALL),
        (TORCHRUN, "at", "entropy_sgd", ""),
        (TORCHRUN, 'uat", targets = "ot', "sgd", POOL + TURNED),
    ],
    ids=["at, weight attack", "trades", "awp and more, accelerate", "entropy_sgd", "uat and more"],
)
def test_two_processes_give_the_weights_and_measures_of_one(tmp_path, launcher, loss, optimizer, plugins):
    recipe = write(tmp_path, loss, optimizer, plugins)
    folders = [tmp_path / "one", tmp_path / "two"]
    outputs = [start(command, recipe, folder) for command, folder in zip((ONE, launcher), folders, strict=True)]
    for done in outputs:
        assert done.returncode == 0, done.stderr[-2000:]
    assert "1 process(es)" in outputs[0].stdout
    assert "2 process(es)" in outputs[1].stdout
    assert outputs[1].stdout.count("epoch 2/2") == 1  # only the main process speaks
    results = [json.loads((f / "eval.json").read_text()) for f in folders]
    assert [r["processes"] for r in results] == [1, 2]

    one, two = (load_file(f / "model.safetensors") for f in folders)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name
    one, two = ([json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4, rel=1e-4)), (a, b)
    a, b = (r["models"]["last"]["test"]["average_flatness"] for r in results)
    assert b == pytest.approx(a, abs=1e-3)


def test_processes_keep_the_same_weights_and_running_statistics(tmp_path):
    plugin = tmp_path / "keeps.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from hookflat import hookimpl\n"
        "from safetensors.torch import save_file\n"
        "@dataclass(eq=False)\n"
        "class Keeps:\n"
        "    @hookimpl\n"
        "    def after_step(self, run):\n"
        "        state = {k: v.contiguous() for k, v in run.network.state_dict().items()}\n"
        "        save_file(state, run.folder.path / f'{run.rank}-{run.step}')\n"
    )
    recipe = write(tmp_path, "trades", plugins="[plugins.self_supervision]\nhidden = 0\n[plugins.keeps]\n")
    recipe.write_text(recipe.read_text().replace('norm = "group"', 'norm = "rebn"'))
    for launcher, folder in ((TORCHRUN, "run"), (ONE, "one")):
        done = start(launcher, recipe, tmp_path / folder, "--plugin", plugin)
        assert done.returncode == 0, done.stderr[-2000:]
    # up to the first norm a process computes what one would: its means are those of the whole batch, in both passes
    one, two = (load_file(tmp_path / folder / "0-1")["net.bn1.running_mean"] for folder in ("one", "run"))
    assert torch.allclose(one, two, atol=1e-6)
    for step in range(1, 7):
        one, two = (load_file(tmp_path / "run" / f"{rank}-{step}") for rank in (0, 1))
        different = [name for name in one if not torch.equal(one[name], two[name])]
        assert not different, (step, different)


def test_a_launch_of_fewer_processes_than_announced_is_refused(tmp_path):
    done = start(ONE, write(tmp_path), tmp_path / "run", WORLD_SIZE="2", ACCELERATE_USE_CPU=None)
    assert done.returncode == 2
    assert "asked for 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_accelerates_silent_single_process_is_refused(tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "hookflat"]
    done = start(launcher, write(tmp_path), tmp_path / "run")
    assert done.returncode != 0
    assert "asked for several processes, but started one" in done.stderr


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path):
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text().replace("batch_size = 16", "batch_size = 15"))
    done = start(TORCHRUN, recipe, tmp_path / "run")
    assert done.returncode != 0
    assert "batch_size = 15 does not divide by the 2 processes" in done.stderr
