"""Studies: what is missing is made, what is there is left alone, what fails is listed."""

import io
import json
import re
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import fails, hookflat
from safetensors.torch import load_file

from hookflat import UserError, run
from hookflat.recipe.shipped import recipes_folder
from hookflat.reporting.comparing import compare
from hookflat.studies.costing import costs_of
from hookflat.studies.execution import Plan, make, run_job, share, submit
from hookflat.studies.study import read_study

RECIPE = """
data = { name = "digits", train = 32, test = 40 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "sgd" }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
run = { epochs = 1, batch_size = 16, threads = 1 }
[loss]
name = "trades"
[eval]
eps = 0.15
step_size = 0.05
[eval.final]
examples = 10
[eval.final.clean_error]
"""

STUDY = """
[study]
folder = "{folder}"
seeds = [0, 1]
[[study.grid]]
recipe = "{recipe}"
values = {{ "loss.beta" = [1.0, 6.0] }}
"""

PROTOCOL = """
[eval.quick]
examples = 10
[eval.quick.clean_error]
[eval.quick.average_flatness]
samples = 1
steps = 1
reference_restarts = 1
"""


@pytest.fixture
def here(monkeypatch):
    """Runs are made in this process, one at a time: starting a fresh one takes seconds."""
    one = threading.Lock()

    def status(_, command, log, environment):
        from hookflat.cli import app

        assert command[:3] == [sys.executable, "-m", "hookflat"]
        with one, redirect_stderr(io.StringIO()) as said:
            code = app(command[3:], standalone_mode=False)
        log.write_text(said.getvalue())
        return code or 0

    monkeypatch.setattr("hookflat.studies.execution.Commands.status", status)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "study.toml").write_text(STUDY.format(folder=tmp_path / "runs", recipe=tmp_path / "tiny.toml"))
    return tmp_path / "study.toml"


def test_a_study_is_every_recipe_at_every_value_and_seed(study):
    jobs = read_study(study).jobs
    assert [job.name for job in jobs] == ["tiny-beta=1-0", "tiny-beta=6-0", "tiny-beta=1-1", "tiny-beta=6-1"]
    assert [job.resolved()["loss"]["beta"] for job in jobs] == [1, 6, 1, 6]
    assert [job.resolved()["run"]["seed"] for job in jobs] == [0, 0, 1, 1]


def test_what_is_missing_is_made_and_what_is_there_left_alone(study, here, monkeypatch):
    read = read_study(study)
    assert set(Plan.of(read).states.values()) == {"todo"}
    assert Plan.of(read).hours is None
    said = []
    assert set(make(read, say=said.append).values()) == {"done"}
    assert sum(line.startswith("done ") for line in said) == 4
    planned = Plan.of(read)
    assert set(planned.states.values()) == {"done"}
    assert planned.hours == 0
    stamps = [(job.folder / "eval.json").stat().st_mtime_ns for job in read.jobs]
    ran = []
    monkeypatch.setattr("hookflat.studies.execution.Commands.status", lambda *a: ran.append(a))
    assert set(make(read).values()) == {"done"}
    assert not ran
    assert [(job.folder / "eval.json").stat().st_mtime_ns for job in read.jobs] == stamps


def test_a_changed_recipe_is_detected_and_only_redone_when_asked(study, here, tmp_path):
    job = read_study(study).jobs[0]
    assert run_job(job) == "done"
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 1", "epochs = 2"))
    changed = read_study(study).jobs[0]
    assert changed.state() == "changed"
    assert changed.changes() == ["run.epochs: 1 in the folder, 2 now"]
    assert run_job(changed) == "changed"
    assert json.loads((job.folder / "eval.json").read_text())["epochs"] == 1
    assert run_job(changed, redo=True) == "done"
    assert json.loads((job.folder / "eval.json").read_text())["epochs"] == 2
    assert json.loads((job.folder.with_name(job.folder.name + "~1") / "eval.json").read_text())["epochs"] == 1


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(study, here):
    read = read_study(study)
    blocked = read.jobs[1].folder
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    said = []
    states = make(read, say=said.append)
    assert [states[job.name] for job in read.jobs] == ["done", "failed", "done", "done"]
    (line,) = [line for line in said if line.startswith("failed")]
    assert "tiny-beta=6-0: hookflat: " in line
    blocked.unlink()
    assert set(make(read, say=said.append).values()) == {"done"}


def test_a_run_that_is_made_elsewhere_is_not_made_again(study, here):
    """A run holds its folder itself: a study that was killed leaves no free lock behind a training that goes on."""
    read = read_study(study)
    lock = read.jobs[0].folder / ".lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            f"import filelock, time; lock = filelock.FileLock({str(lock)!r}); lock.acquire(); "
            "print(1, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    assert run_job(read.jobs[0]) == "elsewhere"
    assert run_job(replace(read.jobs[1], learns_from=(read.jobs[0].folder,))) == "elsewhere"
    assert "elsewhere tiny-beta=1-0: another process is making it" in hookflat("study", study).stdout
    with pytest.raises(UserError, match="is in use: another process"):
        run(read.jobs[0].resolved(), folder=read.jobs[0].folder)
    holder.kill()
    holder.wait()
    assert run_job(read.jobs[0]) == "done"


def test_what_another_process_was_making_is_looked_at_again(study, monkeypatch):
    read = read_study(study)
    turns = []

    def turn(job, **_):
        turns.append(job.name)
        return "elsewhere" if turns.count(job.name) == 1 and job is read.jobs[0] else "done"

    monkeypatch.setattr("hookflat.studies.execution.run_job", turn)
    assert set(make(read).values()) == {"done"}
    assert turns == [*(job.name for job in read.jobs), read.jobs[0].name]


@pytest.mark.parametrize("damage", ["", "[eval", "[run]\nseed = 0\n"])
def test_damaged_files_stop_no_other_run(study, here, tmp_path, damage):
    (tmp_path / "mine.toml").write_text(PROTOCOL)
    study.write_text(study.read_text().replace("seeds = [0, 1]", f'protocol = "{tmp_path / "mine.toml"}"'))
    read = read_study(study)
    damaged = read.jobs[0].measures / "recipe.toml"
    damaged.parent.mkdir(parents=True)
    damaged.write_text(damage)
    assert make(read, say=print) == {"tiny-beta=1-0": "changed", "tiny-beta=6-0": "done"}
    assert read.jobs[0].protocol_changes() == [f"{damaged} cannot be read"]


def test_a_run_that_cannot_be_made_stops_no_other(study, monkeypatch):
    def turn(job, **_):
        if job.name.endswith("1-1"):
            raise PermissionError(13, "Permission denied", str(job.log))
        return "done"

    monkeypatch.setattr("hookflat.studies.execution.run_job", turn)
    said = []
    states = make(read_study(study), say=said.append)
    assert [name for name, state in states.items() if state == "failed"] == ["tiny-beta=1-1"]
    assert "Permission denied" in said[0]


def test_runs_are_measured_by_the_protocol_and_rescaled(study, here, tmp_path):
    (tmp_path / "mine.toml").write_text(PROTOCOL)
    text = STUDY.format(folder=tmp_path / "runs", recipe=tmp_path / "tiny.toml")
    text = text.replace("seeds = [0, 1]", f'protocol = "{tmp_path / "mine.toml"}"').replace(", 6.0", "")
    study.write_text(text + "rescale = [0.5]\n")
    read = read_study(study)
    assert [job.name for job in read.jobs] == ["tiny-beta=1-0", "tiny-beta=1-0-x0.5"]
    said = []
    assert set(make(read, say=said.append).values()) == {"done"}, said
    values = []
    for job in read.jobs:
        assert job.results == job.folder / "eval" / "mine-last" / "eval.json"
        values.append(json.loads(job.results.read_text())["models"]["last"]["test"])
    assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-4)

    (tmp_path / "mine.toml").write_text(PROTOCOL.replace("examples = 10", "examples = 12"))
    changed = read_study(study)
    assert {job.state() for job in changed.jobs} == {"changed"}
    told = hookflat("study", study, "--plan").stdout
    assert "changed  tiny-beta=1-0: eval.quick.examples: 10 in the folder, 12 now" in told
    assert changed.jobs[0].protocol_changes() == ["eval.quick.examples: 10 in the folder, 12 now"]
    weights = (read.jobs[0].folder / "model.safetensors").stat().st_mtime_ns
    assert set(make(changed, redo=True, say=said.append).values()) == {"done"}
    assert (read.jobs[0].folder / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads(read.jobs[0].results.read_text())["protocol"]["stages"]["quick"]["examples"] == {"test": 12}


def test_a_run_learns_from_another_of_the_study(study, here, tmp_path, monkeypatch):
    """It is made after it, from the network of the first seed; a cluster and an estimate leave it out until then."""
    standard, hat = tmp_path / "tiny.toml", tmp_path / "hat.toml"
    hat.write_text('extends = "tiny.toml"\n[loss]\nname = "hat"\n')
    study.write_text(
        f'[study]\nfolder = "{tmp_path / "runs"}"\nseeds = [3, 4]\n[[study.grid]]\nrecipe = "{hat}"\n'
        f'learns_from = {{ "loss.helper" = "{standard}" }}\n[[study.grid]]\nrecipe = "{standard}"\n'
    )
    read, said = read_study(study), []
    assert [job.name for job in read.jobs] == ["hat-3", "tiny-3", "hat-4", "tiny-4"]
    assert {job.resolved()["loss"]["helper"] for job in read.jobs[::2]} == {str(tmp_path / "runs" / "tiny-3")}
    assert [cost.name for cost in costs_of(Plan.of(read))] == ["tiny-3"]
    monkeypatch.setattr("submitit.AutoExecutor.submit", lambda self, family, jobs, *_: jobs[0].name)
    asked = []
    monkeypatch.setattr("submitit.AutoExecutor.update_parameters", lambda self, **parameters: asked.append(parameters))
    assert submit(read, cluster="local", timeout_min=5, slurm_setup="mine") == ["tiny-3", "tiny-4"]
    assert asked[0]["slurm_signal_delay_s"] == 300
    assert [line.rpartition("export ")[2] for line in asked[0]["slurm_setup"]] == [
        "SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi",
        "mine",
    ]
    assert set(make(read, say=said.append).values()) == {"done"}, said
    done = [line.split()[1] for line in said if line.startswith("done")]
    assert done == ["tiny-3:", "tiny-4:", "hat-3:", "hat-4:"]
    (read.folder / "hat-3" / "model.safetensors").unlink()
    (read.folder / "hat-3" / "eval.json").unlink()
    assert submit(read, cluster="local", timeout_min=5) == ["hat-3"]

    for wrong in ("at", hat):
        study.write_text(re.sub('"loss.helper" = ".*"', f'"loss.helper" = "{wrong}"', study.read_text()))
        with pytest.raises(
            UserError, match=rf"hat-3 learns from {Path(wrong).stem}-3, which is none of the study's runs"
        ):
            read_study(study)


def test_submitit_runs_what_is_missing_on_several_processes(study, tmp_path):
    """Its local executor, as it would on a cluster, and accelerate launch, whose run has the weights of one process."""
    study.write_text(study.read_text().replace("[0, 1]", "[0]").replace(", 6.0", ""))
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("width = 8", 'width = 8, norm = "group"'))
    read = read_study(study)
    with pytest.raises(UserError, match="how long a run may take"):
        submit(read, cluster="local")
    with pytest.raises(UserError, match="no srun on this machine"):
        submit(read, timeout_min=5)
    with pytest.raises(UserError, match=r"--slurm: Unknown argument 'gpus' for executor 'slurm'"):
        submit(read, cluster="local", timeout_min=5, slurm_gpus=1)
    (submitted,) = submit(read, cluster="local", processes=2, timeout_min=5, slurm_max_num_timeout=10)
    assert submitted.result() == ["done"]
    (job,) = read.jobs
    assert json.loads((job.folder / "environment.json").read_text())["processes"] == 2
    assert job.log.read_text().count("epoch 1/1") == 1  # only the main process speaks
    alone = load_file(run(job.resolved(), folder=tmp_path / "alone").folder / "model.safetensors")
    for name, weights in load_file(job.folder / "model.safetensors").items():
        assert torch.allclose(weights, alone[name], atol=2e-5), name
    assert set(Plan.of(read).states.values()) == {"done"}
    assert submit(read, cluster="local", timeout_min=5) == []


def test_workers_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6")
    assert [share(w, 4) for w in (0, 1, 3)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("2", "5", "2")
    ]
    assert share(1, 2, 2) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "6,2"}
    with pytest.raises(UserError, match="there are 3 GPUs"):
        share(0, 1, 4)
    assert share(0, 1) == {}
    for none in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert share(0, 1, 2) == {"OMP_NUM_THREADS": "4", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.parametrize("name", ["table1", "hyperparameters", "through_training", "scaling", "methods"])
@pytest.mark.parametrize("overlays", [[], ["scales/cifar10"]])
def test_shipped_studies_are_whole_at_any_scale(name, overlays):
    read = read_study(name, overlays=overlays)
    page = (recipes_folder().parent / "docs" / "studies.md").read_text()
    assert re.search(rf"^\| `{name}` \| .* \| {len(read.jobs)} \|$", page, re.M)
    if name == "table1":
        assert len(read.jobs) == 20 * 3
        titled = {p.stem for p in recipes_folder().glob("*.toml") if "of Table 1" in p.read_text().splitlines()[0]}
        assert {job.recipe for job in read.jobs} == titled | {"at_awp"}
    if name == "methods":
        assert {job.recipe for job in read.jobs} == {p.stem for p in recipes_folder().glob("*.toml")}


def test_the_example_of_single_steps(monkeypatch):
    """FGSM from the image and three cures, alike in everything else, at the radius of the paper's Fig. 11."""
    monkeypatch.chdir(recipes_folder().parent)
    folder = Path("examples", "catastrophic_overfitting")
    read = read_study(folder / "study.toml", plugins=[folder / "one_convolution.py"])
    attacks = {}
    for job in read.jobs:
        table = job.resolved()
        assert table["attack"]["eps"] == table["eval"]["eps"] == pytest.approx(10 / 255)
        assert (table["run"]["epochs"], table["run"]["epochs_factor"]) == (15, 1)
        assert table["model"]["name"] == "one_convolution"
        assert (table["optimizer"]["name"], table["schedule"]["peak"]) == ("adam", 0.003)
        keys = ("alpha", "noise") if table["attack"]["name"] == "n_fgsm" else ("alpha", "steps", "start")
        attacks[job.name] = *(table["attack"][key] for key in keys), "grad_align" in table["plugins"]
    assert attacks == {
        "n_fgsm-0": (1.0, 2.0, False),
        "grad_align-0": (1.0, 1, "zero", True),
        "fast_at-0": (1.25, 1, "uniform", False),
        "grad_align-enabled=False-0": (1.0, 1, "zero", False),
    }


def test_wrong_studies_are_told_before_anything_runs(study, tmp_path):
    def wrong(text, match):
        study.write_text(text)
        with pytest.raises(UserError, match=match):
            read_study(study)

    wrong('[study]\nruns = ["atx"]', "no recipe atx")
    wrong('[study]\nrun = ["at"]', "did you mean 'runs'")
    wrong('[studies]\nruns = ["at"]', r"unknown table \[studies\]")
    wrong("[study]\n", "needs runs")
    wrong('[study]\nruns = ["at", "at"]', "'at-0' twice")
    wrong('[study]\nruns = ["at"]\nprotocol = "papper"', "no protocol 'papper'")
    wrong('[study]\nruns = ["at"]\nprotocol = "paper"\nwhich = ["bset"]', "'bset' should be last, best")
    wrong(
        '[study]\nruns = ["at"]\nprotocol = "paper"\nmeasure = { "eval.flat.examples" = 3 }', "stage without measures"
    )
    wrong('[study]\nruns = ["at"]\nseeds = []', "seeds")
    wrong('[[study.grid]]\nrecipe = "at"\nvalues = { "loss.bta" = [1] }', "unknown option of 'at'")
    many = "\n".join(f'"plugins.awp.{key}" = {list(range(100))}' for key in "abcdefgh")
    wrong(
        f'[[study.grid]]\nrecipe = "at"\n[study.grid.values]\n{many}',
        r"has 1[0]{16} runs \(study.grid\[0\] alone: 1[0]{16} a seed\), more than 10000",
    )
    wrong(f'[study]\nruns = ["at"]\nseeds = {list(range(10_001))}', "has 10001 runs, more than 10000")
    with pytest.raises(UserError, match="no study nothing"):
        read_study("nothing")
    for clash in ("run.seed=3", "loss.beta=2"):
        study.write_text(STUDY.format(folder=tmp_path / "runs", recipe=tmp_path / "tiny.toml"))
        with pytest.raises(UserError, match=f"--set {clash[:-2]}: the study itself sets it"):
            read_study(study, overrides=[clash])


def test_tables_of_values_and_lines_that_were_cut_off_do_no_harm(study):
    study.write_text(study.read_text() + "\n[study.set.optimizer]\nlr = 0.01\n")
    read = read_study(study, overrides=["plugins.awp={xi=0.5}"])
    assert read.jobs[0].resolved()["optimizer"]["lr"] == 0.01
    (command,) = read.jobs[0].commands()
    assert {"optimizer.lr=0.01", "plugins.awp.xi=0.5"} <= set(command)
    read.folder.mkdir()
    (read.folder / "times.jsonl").write_text('{"run": "x", "seconds": 1800.0, "was": "todo"}\n{"run": "y", "sec')
    assert Plan.of(read).hours == pytest.approx(2.0)


def test_the_commands(study, here, tmp_path):
    study.write_text(study.read_text().replace("[0, 1]", "[0]"))
    assert "todo     tiny-beta=6-0" in hookflat("study", study, "--plan", cwd=tmp_path).stdout
    done = hookflat("study", study, "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "study: 2 runs in" in done.stdout
    assert "2 done" in done.stdout
    runs = [tmp_path / "runs" / f"tiny-beta={beta}-0" for beta in (1, 6)]
    compared = hookflat("compare", *runs, cwd=tmp_path).stdout
    assert "loss.beta" in compared
    assert re.search(r"^last test *\n(  .*\n)*  clean loss ", compared, re.MULTILINE)
    for same in ("loss.name", "run.seed"):
        assert same not in compared
    lines, numbers, damaged = compare(runs)
    assert not damaged
    assert [(row.name, row.values) for row in lines] == [("loss.beta", [1, 6])]
    assert all(row.always or row.values[0] != row.values[1] for row in numbers)
    with pytest.raises(UserError, match="is no run folder"):
        compare([runs[0], tmp_path])
    assert "compare takes two run folders" in fails(2, "compare", runs[0], cwd=tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "recipe.toml").write_text("")
    (tmp_path / "torn" / "eval.json").write_text('{"models": ')
    assert "torn/recipe.toml cannot be read: it is empty" in fails(2, "compare", runs[0], tmp_path / "torn")
    (tmp_path / "torn" / "recipe.toml").write_text((runs[0] / "recipe.toml").read_text())
    done = hookflat("compare", runs[0], tmp_path / "torn")
    assert (done.returncode, "recipe: the same" in done.stdout) == (0, True)
    assert "torn/eval.json is not what hookflat writes" in done.stderr
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 1", "epochs = 2"))
    told = hookflat("study", study, cwd=tmp_path)
    assert "run.epochs: 1 in the folder, 2 now" in told.stdout
    assert "--redo moves them aside" in told.stdout
