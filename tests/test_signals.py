"""Signals: SIGTERM is SIGINT, Slurm's USR1 makes a checkpoint, and a study's runs end with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from commands import hookflat
from processes import start

from hookflat.errors import Stopped
from hookflat.studies.execution import Commands, Family, make
from hookflat.studies.study import read_study
from hookflat.testing import run_recipe

TINY = """
data = { name = "digits", train = 64, test = 60 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "sgd" }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
loss = { name = "at" }
run = { epochs = 4, batch_size = 16, threads = 1, checkpoint_steps = 3 }
[eval.final.clean_error]
"""
SIGNALLING = """
import os, signal
from dataclasses import dataclass
from hookflat import hookimpl
@dataclass(eq=False)
class Signals:
    number: int = 15
    times: int = 1
    at: int = 5
    @hookimpl
    def after_step(self, run):
        if run.step == self.at:
            try:
                os.kill(os.getpid(), self.number)
            finally:
                if self.times > 1:
                    os.kill(os.getpid(), self.number)
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.toml").write_text(TINY)
    (tmp_path / "p.py").write_text(SIGNALLING)
    return tmp_path / "r.toml"


def signalled(recipe, folder, number, **options):
    values = [f"plugins.signals.{key}={value}" for key, value in {"number": int(number), **options}.items()]
    sets = [part for value in values for part in ("--set", value)]
    return ("run", recipe, "--plugin", recipe.with_name("p.py"), *sets, "--out", folder)


def newest(folder):
    return max(folder.glob("checkpoints/step-*")).name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_says_what_is_kept(recipe, tmp_path, number, code):
    before = signal.getsignal(number)
    done = hookflat(*signalled(recipe, tmp_path / "run", number))
    assert (done.returncode, done.stderr) == (code, "")
    assert (
        f"stopped after step 5; the same command goes on from {tmp_path}/run/checkpoints/step-000000004" in done.stdout
    )
    assert signal.getsignal(number) is before
    assert not list((tmp_path / "run" / "checkpoints").glob("step-000000005*"))


def test_a_command_that_keeps_nothing_says_that_it_was_stopped(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = hookflat("plugins", "--plugin", file)
    assert (done.returncode, done.stderr) == (143, "hookflat: stopped by SIGTERM\n")


def test_slurm_s_signal_makes_a_checkpoint_and_puts_the_job_into_the_queue(recipe, tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    done = hookflat(*signalled(recipe, tmp_path / "run", signal.SIGUSR1))
    assert done.returncode == 128 + signal.SIGUSR1
    assert newest(tmp_path / "run") == "step-000000005-epoch-000001"
    assert "stopped after step 5" in done.stdout
    assert "job 77 is in the queue again" in done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    (tmp_path / "asked").unlink()
    monkeypatch.setenv("HOOKFLAT_WAITS", "1")  # the study does
    assert hookflat(*signalled(recipe, tmp_path / "other", signal.SIGUSR1)).returncode == 138
    assert not (tmp_path / "asked").exists()
    monkeypatch.delenv("HOOKFLAT_WAITS")
    scontrol.write_text("#!/bin/sh\necho no such job >&2; exit 1\n")
    assert "scontrol: no such job" in hookflat(*signalled(recipe, tmp_path / "third", signal.SIGUSR1)).stderr


def test_a_run_that_a_signal_stopped_ends_as_if_never_stopped(recipe, tmp_path):
    command = signalled(recipe, tmp_path / "run", signal.SIGUSR1)
    assert hookflat(*command).returncode == 138
    assert hookflat(*command).returncode == 0
    assert hookflat(*signalled(recipe, tmp_path / "whole", 0)).returncode == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_signal_ends_at_once(recipe, tmp_path):
    started = start(tmp_path / "said", *signalled(recipe, tmp_path / "run", signal.SIGTERM, times=2))
    assert started.wait() == signal.SIGTERM
    assert "stopped" not in started.said("out")


def test_several_processes_agree_where_they_stop(tmp_path, monkeypatch):
    """The signal reaches one of them."""
    monkeypatch.setattr("hookflat.training.stopping.TOGETHER", 2)

    def work():
        if os.environ["RANK"] == "1":
            from hookflat.training import loop

            step = loop.step

            def signalled_step(run, batch):
                if run.step == 3:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return step(run, batch)

            loop.step = signalled_step
        try:
            run_recipe({}, tmp_path / "run")
        except Stopped as stopped:
            raise SystemExit(stopped.number) from None

    started = start(tmp_path / "said", call=work, processes=2)
    started.wait()
    assert started.codes == {0: signal.SIGUSR1, 1: signal.SIGUSR1}, started.said("err")
    assert newest(tmp_path / "run") == "step-000000004-epoch-000001"


SLEEPER = "import sys, time; print(1, flush=True); time.sleep(60)"
SIGNALLER = """
import os, sys, time
from pathlib import Path
while not all(Path(p).exists() and Path(p).read_text() for p in sys.argv[3:]):
    time.sleep(0.05)
os.kill(int(sys.argv[1]), int(sys.argv[2]))
"""


@contextmanager
def signal_once_written(number, handler, logs):
    """This process gets a signal, which `handler` takes, when something is in every log."""
    before = signal.signal(number, handler)
    command = [sys.executable, "-c", SIGNALLER, str(os.getpid()), str(int(number)), *map(str, logs)]
    watcher = subprocess.Popen(command)
    try:
        yield
    finally:
        watcher.wait()
        signal.signal(number, before)


def waited(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "r.toml").write_text(TINY)
    file = tmp_path / "s.toml"
    file.write_text(
        f'[study]\nfolder = "{tmp_path}/runs"\nseeds = [0, 1, 2]\n[[study.grid]]\nrecipe = "{tmp_path}/r.toml"\n'
    )
    return read_study(file)


def test_a_study_that_is_asked_to_end_ends_its_runs(study, tmp_path, monkeypatch):
    """No orphan is left, and no further run begins."""
    monkeypatch.setattr("hookflat.studies.study.Job.commands", lambda *_: [[sys.executable, "-c", SLEEPER]])
    said = []

    def stop(*_):
        raise Stopped(signal.SIGTERM)

    logs = [job.log for job in study.jobs]
    with signal_once_written(signal.SIGTERM, stop, logs[:2]), pytest.raises(Stopped):
        make(study, workers=2, say=said.append)
    assert said == ["stopping 2 runs; the same command goes on with them"]
    assert not logs[2].exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert SLEEPER not in running


def test_a_job_of_a_cluster_tells_its_run_before_it_goes_back_to_the_queue(study, monkeypatch):
    """As submitit does it: from a signal's handler, while the job waits for the run."""
    noting = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9)); " + SLEEPER
    monkeypatch.setattr("hookflat.studies.study.Job.commands", lambda *_: [[sys.executable, "-c", noting]])
    family, again, job = Family(), [], study.jobs[0]

    def handler(*_):
        again.append(family.checkpoint([job], 1, False))

    job.folder.parent.mkdir(parents=True)
    with signal_once_written(signal.SIGUSR2, handler, [job.log]):
        assert family([job], 1, False) == ["begun"]
    (submission,) = again
    assert (type(submission.function), submission.args) == (Family, ([job], 1, False))


def test_the_workers_of_a_launcher_are_told_to_stop(tmp_path):
    """torch gives each a session of its own, and its launcher passes SIGTERM on, not USR1."""
    worker = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9)); " + SLEEPER
    code = (
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]], start_new_session=True))"
    )
    commands, codes, log = Commands(), [], tmp_path / "log"
    command = [sys.executable, "-c", code, worker]
    thread = threading.Thread(target=lambda: codes.append(commands.status(command, log, {})))
    thread.start()
    waited(lambda: log.exists() and log.read_text())
    commands.stop(signal.SIGUSR1)
    thread.join(120)
    assert codes == [9]


def test_commands_that_ignore_the_signal_of_a_launcher_live(tmp_path):
    """A launcher between a study and its run does nothing about USR1, and must not die of it."""
    commands, codes = Commands(), []
    code = "import sys, time; print(1, flush=True); time.sleep(1)"
    log = tmp_path / "log"
    thread = threading.Thread(target=lambda: codes.append(commands.status([sys.executable, "-c", code], log, {})))
    thread.start()
    waited(lambda: log.exists() and log.read_text())
    assert commands.stop(signal.SIGUSR1) == 1
    thread.join()
    assert codes == [0]
