"""Two processes against one: the same global batches, the same weights up to float addition order."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from commands import fails
from processes import finished
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import hookflat
from hookflat import Examples, Images, UserError, Work
from hookflat.recipe.recipe import RunOptions
from hookflat.testing import TinyData, run_recipe, tiny_run
from hookflat.training import loop
from hookflat.training.launch import accelerator, check_launch

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hookflat"]
"""The other launcher, accelerate's, is that of studies: tests/test_study.py."""

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
    """By a launcher, in fresh interpreters; or, for a number, on so many processes forked from this one."""
    command = ["run", str(recipe), "--out", str(folder), *map(str, arguments)]
    if isinstance(launcher, int):
        return finished(folder.with_name(f"{folder.name}.said"), *command, processes=launcher, **environment)
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([*launcher, *command], env=env, capture_output=True, text=True, timeout=300, check=False)


def write(tmp_path, loss="at", optimizer="sgd", plugins=""):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(loss=loss, optimizer=optimizer, plugins=plugins))
    return path


ALL = "[plugins.awp]\n[plugins.label_noise]\n[plugins.averaging]\ndecay = 0.5\n"
POOL = "[plugins.unlabeled]\nshare = 0.5\nfraction = 0.3\n"
TURNED = "[plugins.self_supervision]\nhidden = 0\nshare = 0.45\n[plugins.sam]\n[plugins.swa]\nstart = 0.5\n"
ATTACKED = '[plugins.weight_attack]\npopulation = 2\ncurriculum = "threshold"\nthreshold = 9\n'
STOPPING = "[plugins.early_stopping]\nholdout = 11\nevery = 1\nsteps = 2\n[plugins.figures]\n"


@pytest.mark.parametrize(
    ("launcher", "loss", "optimizer", "plugins"),
    [
        (2, "at", "sgd", STOPPING + ATTACKED),
        (TORCHRUN, "trades", "sgd", "[plugins.augment]\npadding = 1\n"),
        (2, "at", "sgd", ALL),
        (2, "at", "entropy_sgd", ""),
        (2, "lbgat", "sgd", ""),
        (2, 'uat", targets = "ot', "sgd", POOL + TURNED),
    ],
    ids=["at, weight attack", "trades, torchrun", "awp and more", "entropy_sgd", "lbgat", "uat and more"],
)
def test_two_processes_give_the_weights_and_measures_of_one(tmp_path, launcher, loss, optimizer, plugins):
    recipe = write(tmp_path, loss, optimizer, plugins)
    folders = [tmp_path / "one", tmp_path / "two"]
    outputs = [start(command, recipe, folder) for command, folder in zip((1, launcher), folders, strict=True)]
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
    for launcher, folder in ((2, "run"), (1, "one")):
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
    done = start(1, write(tmp_path), tmp_path / "run", WORLD_SIZE="2", ACCELERATE_USE_CPU=None)
    assert done.returncode == 2
    assert "asked for 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_accelerates_silent_single_process_is_refused(tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing."""
    asked = launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "-m", "hookflat"])
    with patch("subprocess.Popen") as started, pytest.raises(subprocess.CalledProcessError):
        launch_command(asked)
    (call,) = started.call_args_list
    done = start(1, write(tmp_path), tmp_path / "run", **call.kwargs["env"])
    assert done.returncode == 2
    assert "asked for several processes, but started one" in done.stderr


def test_a_batch_that_does_not_divide_is_refused_by_every_process(tmp_path):
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text().replace("batch_size = 16", "batch_size = 15"))
    done = start(2, recipe, tmp_path / "run")
    assert done.returncode == 2
    assert "batch_size = 15 does not divide by the 2 processes" in done.stderr


class Double(Images):
    def batches(self, indices):
        for x, y in super().batches(indices):
            yield x.double(), y


def measures(folder):
    """Every measure of a small network, on the processes that there are."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    data = TinyData(test=31).build_data().test
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    net = nn.Sequential(*layers).double().eval()
    examples = Examples(Double(data.x, data.y), batch_size=7, device="cpu", accelerator=accelerator)
    attack = {"eps": 0.1, "step_size": 0.03, "steps": 3}
    worst = {"xi": 0.01, "attempts": 2, "sweeps": 3, "batch_size": 10, "eps": 0.1, "reference": 0.0}
    worst["work"] = Work(folder / str(accelerator.process_index))
    robust = {"robust": False}
    values = {
        "rloss": hookflat.robust_loss(net, examples, restarts=2, **attack).loss,
        "average": hookflat.average_flatness(net, examples, samples=2, reference=0.0, **attack).losses,
        "worst": hookflat.worst_flatness(net, examples, **worst).losses,
        "worst again": hookflat.worst_flatness(net, examples, **worst).losses,
        "clean worst": hookflat.worst_flatness(net, examples, attempts=1, sweeps=2, **robust).losses,
        "eigenvalues": hookflat.hessian_eigenvalues(net, examples, k=2, tolerance=1e-9, **attack).largest,
        "trace": hookflat.hessian_trace(net, examples, samples=2, **attack).trace,
        "sharpness": hookflat.sharpness(net, examples, adaptive=True, **attack).sharpness,
        "relative": hookflat.relative_flatness(net, examples, **attack),
        "landscape": hookflat.landscape(
            net, examples, kind="adversarial", directions=1, points=3, **attack
        ).loss.tolist(),
        "autoattack": hookflat.autoattack(
            net.float(),
            Examples(data, batch_size=7, accelerator=accelerator),
            version="custom",
            attacks=["apgd-ce", "apgd-dlr"],
            eps=0.1,
            batch_size=6,
        ).broken_by.tolist(),
    }
    if accelerator.is_main_process:
        print("FOUND", json.dumps(values))


def test_two_processes_measure_what_one_does(tmp_path):
    collected = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = finished(folder / "said", processes=processes, call=lambda folder=folder: measures(folder))
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        collected.append(json.loads(line.removeprefix("FOUND ")))
    one, two = collected
    for name, value in one.items():
        flat = [torch.tensor(v).flatten().tolist() for v in (value, two[name])]
        assert flat[1] == pytest.approx(flat[0], abs=1e-6, rel=1e-6), name
    assert one["worst"] == one["worst again"]
    assert len(set(one["autoattack"])) > 1


def test_two_processes_evaluate_a_run_folder_as_one_does(tmp_path):
    recipe = write(tmp_path)
    assert start(1, recipe, tmp_path / "run", "--set", "run.epochs=1").returncode == 0
    options = ["--measure", "robust_loss", "--measure", "worst_flatness", "--measure", "autoattack"]
    for key, value in {
        **{"examples": 33, "robust_loss.restarts": 2, "robust_loss.steps": 2, "worst_flatness.attempts": 1},
        **{"worst_flatness.sweeps": 2, "worst_flatness.steps": 2, "worst_flatness.reference_restarts": 2},
        **{"autoattack.version": "custom", "autoattack.attacks": '["apgd-ce"]', "autoattack.batch_size": 12},
    }.items():
        options += ["--set", f"eval.measures.{key}={value}"]
    results = []
    for processes, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        command = ["eval", tmp_path / "run", "--out", out, *options]
        done = finished(tmp_path / f"said {processes}", *command, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("3/3 last test autoattack") == 1
        results.append(json.loads((out / "eval.json").read_text()))
    assert [r["processes"] for r in results] == [1, 2]
    one, two = (r["models"]["last"]["test"] for r in results)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize(
    ("loss", "attack"),
    [("at", "pgd"), ("ikl", 'free", norm = "L2", replays = 3, alpha = "1/2')],
    ids=["at", "what remembers an epoch and a batch"],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, loss, attack):
    """Without batch norm: the weights and lines of a run that one process made, in four parts at a time or at once."""
    recipe = write(tmp_path, loss, plugins='[plugins.awp]\n[plugins.averaging]\ndecay = 0.5\n[eval]\nnorm = "Linf"\n')
    recipe.write_text(recipe.read_text().replace('name = "pgd"', f'name = "{attack}"'))
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert start(1, recipe, whole).returncode == 0
    for processes, stop in ((1, 2), (4, 4)):
        part = start(processes, recipe, moved, "--max-steps", stop)
        assert part.returncode == 0, part.stderr[-2000:]
        assert f"stopped after step {stop} of 6" in part.stdout
        assert not (moved / "eval.json").exists()
    assert "resumed after step 2" in part.stdout
    done = start(2, recipe, moved)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed after step 4" in done.stdout
    one, other = (load_file(f / "model.safetensors") for f in (whole, moved))
    for name in one:
        assert torch.allclose(one[name], other[name], atol=2e-5), name
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, moved)]
    assert [sorted(line) for line in lines[0]] == [sorted(line) for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        assert all(b[k] == (v if isinstance(v, str) else pytest.approx(v, abs=1e-4, rel=1e-4)) for k, v in a.items())


def test_batch_norm_does_not_go_on_with_another_number_of_processes(tmp_path):
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text().replace('norm = "group"', 'norm = "rebn"'))
    assert start(2, recipe, tmp_path / "run", "--max-steps", 1).returncode == 0
    before = (tmp_path / "run" / "metrics.jsonl").exists()
    done = start(1, recipe, tmp_path / "run")
    assert done.returncode == 2
    assert "was begun on 2 processes, this is 1: batch norm (layer 'net.bn1')" in done.stderr
    assert "8 examples there and 16 here" in done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists() == before


def test_four_processes_take_parts_of_their_batches_in_low_precision_alike(tmp_path):
    """Two parts on each of two processes are four examples at a time, as on four: the same steps in float16."""
    recipe = write(tmp_path, "trades", plugins="[plugins.awp]\n")
    results = []
    for processes, parts in ((2, 2), (4, 1)):
        options = ("--set", "run.precision=fp16", "--set", f"run.accumulation={parts}", "--set", "run.max_grad_norm=1")
        folder = tmp_path / str(processes)
        done = start(processes, recipe, folder, *options, "--max-steps", 3)
        assert done.returncode == 0, done.stderr[-2000:]
        (checkpoint,) = (folder / "checkpoints").glob("step-*")
        results.append(load_file(checkpoint / "model.safetensors"))
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=2e-3), name


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "accelerate was asked for FSDP: weight perturbations need whole layers"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed: its engine owns the backward pass"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism config"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "--mixed_precision bf16, the recipe has run.precision = fp32"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "run.accumulation = 1: the recipe decides"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "Set run.compile = true there"),
    ],
)
def test_what_a_launcher_is_asked_for_and_would_not_get_is_refused(tmp_path, monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert told in fails(2, "run", write(tmp_path), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_launcher_may_ask_for_what_the_recipe_has(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    check_launch(RunOptions(precision="bf16"))
    with pytest.raises(UserError):
        check_launch(RunOptions(precision="fp16"))


def test_a_teacher_may_have_been_trained_in_another_precision(tmp_path, monkeypatch):
    teacher = str(run_recipe({"run": {"epochs": 1}}, tmp_path / "teacher").folder)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tables = {"loss": {"name": "hat", "helper": teacher}, "run": {"epochs": 1, "precision": "bf16"}}
    assert run_recipe(tables, tmp_path / "run").results.models["last"].epoch == 1


def test_what_the_recipe_has_too_is_not_done_twice(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    check_launch(RunOptions(accumulation=4, compile=True))
    made = accelerator()
    assert made.gradient_accumulation_steps == 1
    assert made.state.dynamo_plugin.backend == "NO"


STUBS = """
accelerate() { printf '%q ' "$@"; echo; }
hookflat() { :; }
srun() { "$@"; }
scontrol() { echo node1; echo node2; }
export -f accelerate
"""


def test_the_launches_of_scaling_md_are_what_accelerate_takes(tmp_path, monkeypatch):
    """Its shell blocks are run, in a shell that says what accelerate was called with."""
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    section = page[page.index("## Many GPUs") : page.index("### What is averaged")]
    script = STUBS + "".join(re.findall(r"```sh\n(.*?)```", section, re.S))
    slurm = {"SLURM_CPUS_PER_TASK": "64", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[1-2]"}
    said = subprocess.run(["bash", "-euc", script], env=os.environ | slurm, capture_output=True, text=True, check=True)
    calls = [shlex.split(line)[1:] for line in said.stdout.splitlines()]
    (tmp_path / "eight.yaml").write_text(re.search(r"```yaml\n(.*?)```", section, re.S)[1])
    calls.append(["--config_file", str(tmp_path / "eight.yaml"), "-m", "hookflat", "run", "trades"])
    asked = []
    for call in calls:
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(call))
        assert arguments.module
        assert (arguments.training_script, arguments.training_script_args[0]) == ("hookflat", "run")
        rank = int(arguments.machine_rank or 0)
        asked.append((arguments.num_processes, arguments.num_machines, rank, arguments.main_process_ip))
        assert arguments.multi_gpu
        for name, value in prepare_multi_gpu_env(arguments).items():
            if name.startswith("ACCELERATE"):
                monkeypatch.setenv(name, value)
        check_launch(RunOptions())
    one = [(n, 1, 0, None) for n in (2, 4, 8)]
    assert asked == [*one, (16, 2, 0, "10.0.0.1"), (16, 2, 1, "node1"), (8, 1, 0, None)]


METHODS = {
    "AT": ({}, 1),
    "TRADES": ({"loss": {"name": "trades"}}, 1),
    "AWP": ({"plugins": {"awp": {}}}, 2),
    "AWP in parts": ({"plugins": {"awp": {}}, "run": {"accumulation": 2}}, 2),
    "SAM": ({"plugins": {"sam": {}}}, 2),
    "AMP": ({"plugins": {"amp": {"steps": 2}}}, 3),
    "random weights": ({"plugins": {"random_weights": {"population": 2}}}, 2),
    "weight attack": ({"plugins": {"weight_attack": {"population": 2, "steps": 3}}}, 8),
    "Entropy-SGD": ({"optimizer": {"name": "entropy_sgd", "langevin_steps": 3}}, 1),
}
"""Recipe, and how often a step sends all gradients. docs/scaling.md has this table."""


def sent():
    """What the second step of each method exchanges: gradients over parameters, others over running statistics."""
    by_name = {}
    for name, (tables, _) in METHODS.items():
        with tiny_run(tables) as run:
            counts = {"gradients": 0, "statistics": 0, "single": 0}

            def gradients(state, bucket, counts=counts):
                counts["gradients"] += bucket.buffer().numel()
                counts["statistics"] -= bucket.buffer().numel()  # the next line goes through `others`
                return allreduce_hook(None, bucket)

            def others(tensor, *args, counts=counts, plain=torch.distributed.all_reduce, **options):
                counts["single" if tensor.numel() == 1 else "statistics"] += tensor.numel()
                return plain(tensor, *args, **options)

            run.model.register_comm_hook(None, gradients)
            batches = list(run.batches())
            loop.step(run, batches[0])
            counts |= dict.fromkeys(counts, 0)
            with patch("torch.distributed.all_reduce", others):
                loop.step(run, batches[1])
            parameters = sum(p.numel() for p in run.network.parameters())
            buffers = sum(b.numel() for b in run.network.buffers() if b.is_floating_point())
            by_name[name] = [counts["gradients"] / parameters, counts["statistics"] / buffers, counts["single"]]
    if run.main:
        print("SENT", json.dumps(by_name))


def test_a_step_sends_its_gradients_once_for_each_backward_pass(tmp_path):
    done = finished(tmp_path / "said", processes=2, call=sent)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SENT")]
    for name, (gradients, statistics, single) in json.loads(line.removeprefix("SENT ")).items():
        assert gradients == METHODS[name][1], name
        assert statistics == 1, name
        assert single == (name in ("random weights", "weight attack")), name  # the loss that their curriculum asks for
