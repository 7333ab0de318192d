"""Making a study's runs: on this machine, several at once, or on a cluster.

A process holds the run's folder that it works in; a lock beside it keeps two studies from starting the same run.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import psutil
from filelock import FileLock, Timeout

from hookflat.errors import Stopped, UserError
from hookflat.records.texts import sound_json
from hookflat.studies.jobs import CLUSTER, State
from hookflat.studies.progress import Progress
from hookflat.studies.study import AnyJob, Study, write_plan
from hookflat.terminal import duration
from hookflat.threads import limit

WAITS = "HOOKFLAT_WAITS"
"""In the environment of a study's runs: not they, but who started them puts a job back into the queue."""
TIMES = "times.jsonl"
_OF_THE_EXECUTOR = ("slurm_max_num_timeout", "slurm_max_pickle_size_gb", "slurm_python")
"""Parameters that submitit takes elsewhere than those of a job."""


def make(
    study: Study,
    *,
    workers: int = 1,
    processes: int = 1,
    redo: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, State]:
    """Train and measure what is missing, `workers` runs at once on this machine; the state of every run at the end.

    A failed run does not stop the others. `redo`: move runs of a changed recipe aside and make them anew. Runs that
    another process was making are looked at again at the end.
    """
    write_plan(study)
    states: dict[str, State] = {}
    free: Queue[int] = Queue()
    for worker in range(workers):
        free.put(worker)
    environments = [share(worker, workers, processes) for worker in range(workers)]
    commands = Commands()
    progress = Progress(len(study.jobs), workers, say)

    def in_turn(job: AnyJob) -> State:
        worker = free.get()
        progress.begun(job.name)
        try:
            environment = environments[worker]
            return run_job(job, environment=environment, processes=processes, redo=redo, say=say, commands=commands)
        except (OSError, UserError) as error:
            say(f"failed   {job.name}: {error}")
            return "failed"
        finally:
            progress.ended(job.name)
            free.put(worker)

    waves: tuple[Callable[[AnyJob], bool], ...] = (
        lambda job: not job.rescaled and not job.learns_from,
        lambda job: not job.rescaled and bool(job.learns_from),  # after the runs that they learn from
        lambda job: bool(job.rescaled),  # after the runs that they are made from
        lambda job: states[job.name] == "elsewhere",
    )
    for wave in waves:
        jobs = [job for job in study.jobs if wave(job)]
        with ThreadPoolExecutor(workers) as pool, progress.told():
            turns = [pool.submit(in_turn, job) for job in jobs]
            try:
                states |= {job.name: turn.result() for job, turn in zip(jobs, turns, strict=True)}
            except KeyboardInterrupt as stopped:
                for turn in turns:
                    turn.cancel()
                if running := commands.stop(getattr(stopped, "number", signal.SIGTERM)):
                    say(f"stopping {running} runs; the same command goes on with them")
                    if isinstance(stopped, Stopped):
                        stopped.said = True
                raise
    return states


def run_job(
    job: AnyJob,
    *,
    environment: dict[str, str] | None = None,
    processes: int = 1,
    redo: bool = False,
    say: Callable[[str], None] = print,
    commands: Commands | None = None,
) -> State:
    """Make one run, unless it is done or being made elsewhere. `commands`: to stop it from outside."""
    commands = commands or Commands()
    try:
        lock = FileLock(job.folder.with_name(f".{job.folder.name}.lock"))
        with lock.acquire(timeout=0):
            state = job.state()
            if state == "changed" and redo:
                _move_aside(job.folder if job.changes() else job.measures)
                state = job.state()
            if state in ("begun", "todo") and job.has_to_wait():
                return "elsewhere"
            if state in ("done", "begun", "todo"):
                job.note()
            if state in ("done", "changed", "elsewhere"):
                return state
            began = time.time()
            for command in job.commands(processes):
                if commands.status(command, job.log, environment or {}):
                    if commands.stopped:
                        return "begun"
                    why = _last_line(job.log)
                    _note(job, time.time() - began, "failed", why=why)
                    say(f"failed   {job.name}: {why} (see {job.log})")
                    return "failed"
            seconds = time.time() - began
            _note(job, seconds, "rescaled" if job.rescaled else state)
            say(f"done     {job.name}: {duration(seconds)}")
            return "done"
    except Timeout:
        return "elsewhere"


def _note(job: AnyJob, seconds: float, was: str, **about: str) -> None:
    """One line about a run that ended, in the study's folder; an estimate can do without it."""
    with suppress(OSError), (job.folder.parent / TIMES).open("a", encoding="utf-8") as times:
        times.write(json.dumps({"run": job.name, "seconds": round(seconds, 1), "was": was} | about) + "\n")


def times_of(folder: Path) -> list[dict[str, Any]]:
    """A line for every run that ended: its name, seconds, what there was of it before, or why it failed."""
    file, lines = folder / TIMES, []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with suppress(ValueError):  # an estimate should not fail on a line that was cut off
            entry = sound_json(line)
            seconds = entry.get("seconds") if isinstance(entry, dict) else None
            if isinstance(seconds, int | float) and {"run", "was"} <= entry.keys():
                lines.append(entry)
    return lines


class Commands:
    """The commands at work, each with its own group of processes, so that all of them can be told to stop."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.stopped = False

    def status(self, command: list[str], log: Path, environment: dict[str, str]) -> int:
        """The exit status of a command whose output goes to the end of `log`; not begun after `stop`."""
        # Slurm sends a signal to every process of a job; launchers would die of it, and submitit's is not for runs
        quiet = ["sh", "-c", 'trap "" USR1 USR2; exec "$@"', "hookflat"] if os.name == "posix" else []
        around = os.environ | {WAITS: "1"} | environment
        with log.open("a", encoding="utf-8") as file:
            if self.stopped:
                return 1
            process = subprocess.Popen([*quiet, *command], stdout=file, stderr=file, env=around, start_new_session=True)
            self.running.add(process.pid)
            try:
                if self.stopped:  # while it was started
                    self._tell(process.pid, signal.SIGTERM)
                return process.wait()
            except KeyboardInterrupt:
                self.stop(signal.SIGTERM)
                process.wait()
                raise
            finally:
                self.running.discard(process.pid)

    def stop(self, number: int) -> int:
        """Send a signal to all; how many there were."""
        self.stopped = True
        running = list(self.running)
        for pid in running:
            self._tell(pid, number if number != signal.SIGINT else signal.SIGTERM)
        return len(running)

    def ended(self) -> None:
        """Wait until all have ended, though somebody else waits for them, too."""
        for pid in list(self.running):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def _tell(self, pid: int, number: int) -> None:
        workers = _outside_its_group(pid) if number == getattr(signal, "SIGUSR1", None) else []
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        for worker in workers:  # a launcher passes SIGTERM on, and not this one
            with suppress(ProcessLookupError):
                os.kill(worker, number)


def _outside_its_group(pid: int) -> list[int]:
    """The processes of a command that are not in its group: a launcher's workers have a session each."""
    pids = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(ProcessLookupError):
                pids += [child.pid] if os.getpgid(child.pid) != pid else []
    return pids


@dataclass(frozen=True)
class Plan:
    """The state of every run of a study, and how many hours one worker needs for the rest, where that is known."""

    study: Study
    states: dict[str, State]
    hours: float | None

    @classmethod
    def of(cls, study: Study) -> Plan:
        """Hours are judged from the runs that are done."""
        states: dict[str, State] = {job.name: job.state() for job in study.jobs}
        whole = [line["seconds"] for line in times_of(study.folder) if line["was"] == "todo"]
        left = sum(states[job.name] in ("todo", "begun") for job in study.jobs if not job.rescaled)
        return cls(study, states, left * sum(whole) / len(whole) / 3600 if whole else None)

    def changes(self) -> dict[str, list[str]]:
        """What is another in the recipe or the protocol of runs that were made."""
        changed = [job for job in self.study.jobs if self.states[job.name] == "changed"]
        return {job.name: [*job.changes(), *job.protocol_changes()] for job in changed}

    def facts(self) -> dict[str, Any]:
        """The same for scripts."""
        changes = self.changes()
        runs = [
            {
                "name": job.name,
                "recipe": job.recipe,
                "seed": job.seed,
                "folder": str(job.folder),
                "state": self.states[job.name],
                "changes": changes.get(job.name, []),
            }
            for job in self.study.jobs
        ]
        return {"name": self.study.name, "folder": str(self.study.folder), "hours": self.hours, "runs": runs}


def share(worker: int, workers: int, processes: int = 1) -> dict[str, str]:
    """A worker's part of this machine: its share of the cores, and a GPU for each process, by turns.

    Raises UserError where `processes` are more than there are GPUs.
    """
    named = filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
    gpus = [*itertools.takewhile(lambda gpu: not gpu.startswith("-"), named)] or _gpus()  # CUDA ends the list at -1
    if gpus and processes > len(gpus):
        raise UserError(f"--processes {processes}: there are {len(gpus)} GPUs")
    mine = {"OMP_NUM_THREADS": str(max(1, limit() // (workers * processes)))} if workers * processes > 1 else {}
    if not gpus:
        return mine | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})
    turns = [gpus[(worker * processes + i) % len(gpus)] for i in range(processes)]
    return mine | ({"CUDA_VISIBLE_DEVICES": ",".join(turns)} if workers * processes > 1 else {})


_CORES_FOR_SRUN = 'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi'
"""From Slurm 22.05 to 23.11 srun, which submitit calls, does not take a job's cores for its own."""


def submit(
    study: Study, *, cluster: str | None = None, processes: int = 1, redo: bool = False, **slurm: Any
) -> list[Any]:
    """One cluster job for each run that is missing, with its rescaled networks, through `submitit`.

    A run that learns from others is left out until these have a network.
    `cluster`: Slurm where nothing is said; "local" runs them here. `slurm`: parameters of `submitit.AutoExecutor`, as
    timeout_min, gpus_per_node, slurm_partition. Raises UserError without submitit, Slurm, or a time limit, and for
    parameters that there are not.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError('--launcher slurm needs submitit: pip install "hookflat[slurm]"') from error
    if cluster is None and shutil.which("srun") is None:
        raise UserError("--launcher slurm: there is no srun on this machine")
    if not slurm.keys() & {"timeout_min", "slurm_time"}:
        raise UserError("--launcher slurm: say how long a run may take, --slurm timeout_min=600")
    write_plan(study)
    slurm.setdefault("slurm_signal_delay_s", 300)  # a step and a checkpoint must be over before the time is
    own = slurm.get("slurm_setup", [])
    slurm["slurm_setup"] = [_CORES_FOR_SRUN, *([own] if isinstance(own, str) else own)]
    its_own = {key: slurm.pop(key) for key in _OF_THE_EXECUTOR if key in slurm}
    try:
        executor = submitit.AutoExecutor(folder=study.folder / CLUSTER, cluster=cluster or "slurm", **its_own)
        executor.update_parameters(name=f"hookflat {study.name}", **slurm)
    except (NameError, AssertionError) as error:  # what submitit says of a parameter that it does not know
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from error
    submitted = []
    for source in (job for job in study.jobs if not job.rescaled):
        family = [source, *(job for job in study.jobs if job.rescaled and job.rescaled[0] == source.folder)]
        leave = {"done", "elsewhere"} if redo else {"done", "elsewhere", "changed"}
        if not source.waits_for() and any(job.state() not in leave for job in family):
            submitted.append(executor.submit(Family(), family, processes, redo))
    return submitted


class Family:
    """A run and its rescaled networks, one after another: a job that may have to go back to a cluster's queue."""

    def __init__(self) -> None:
        self.commands = Commands()

    def __call__(self, jobs: list[AnyJob], processes: int, redo: bool) -> list[State]:
        """Their states at the end."""
        options: dict[str, Any] = {"environment": share(0, 1, processes), "processes": processes, "redo": redo}
        return [run_job(job, **options, commands=self.commands) for job in jobs]

    def checkpoint(self, jobs: list[AnyJob], processes: int, redo: bool) -> Any:
        """What submitit calls before the job's time is over, and puts into the queue: the same once more."""
        from submitit.helpers import DelayedSubmission

        self.commands.stop(signal.SIGUSR1)
        self.commands.ended()
        return DelayedSubmission(Family(), jobs, processes, redo)


def _move_aside(folder: Path) -> None:
    """A folder to a name of its own beside it."""
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}~{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}~{number}"))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _gpus() -> Sequence[str]:
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
