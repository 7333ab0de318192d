"""One of several processes is killed: the others end within seconds, and one of them says why."""

import os
import signal
import time

import pytest
from processes import start

from hookflat import TrainingFailed
from hookflat.testing import run_recipe
from hookflat.training import checkpoints, entry, loop
from hookflat.training.measuring import Measurements
from hookflat.training.run import Run

STAGES = {
    "building": (Run, "build", 1),
    "a step": (loop, "step", 3),
    "a checkpoint": (checkpoints, "_state", 1),
    "an epoch's measures": (Measurements, "stage", 1),
    "after the training": (entry, "finish", 1),
    "the final measures": (Measurements, "end", 1),
}
LONGEST = 10.0
"""Seconds in which the others must have ended."""


def dying(stage, rank):
    """Make this process, if it is that one, kill itself in a stage; the stage "a checkpoint" is the main process's."""
    place, name, call = STAGES[stage]
    original, calls = getattr(place, name), 0

    def killed(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    if int(os.environ["RANK"]) == rank:
        setattr(place, name, killed)


def one_killed(place, processes, stage, rank):
    """What is wrong with how the others end."""

    def work():
        dying(stage, rank)
        try:
            run_recipe({"run": {"checkpoint_steps": 2, "batch_size": 8}}, place / "run")
        except TrainingFailed as error:
            if not error.said:
                print(f"told: {error}", flush=True)
            raise SystemExit(3) from None

    named = f"{processes} processes, number {rank} killed in {stage}"
    started = start(place / "said", call=work, processes=processes)
    left, killed_at, late, codes = dict(enumerate(started.pids)), None, False, {}
    began = time.monotonic()
    while left and not late:
        for number, pid in list(left.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[number] = os.waitstatus_to_exitcode(status)
                del left[number]
                killed_at = killed_at or time.monotonic()
        late = (killed_at is not None and time.monotonic() - killed_at > LONGEST) or time.monotonic() - began > 120
        time.sleep(0.02)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = started.said("out")
    wrong = [f"{named}: number {number} did not end" for number in left]
    others = {number: code for number, code in codes.items() if code not in (3, -signal.SIGKILL)}
    wrong += [f"{named}: ended with {others}: {started.said('err')[-600:]}"] if others else []
    if said.count("told: ") != 1 or "processes ended" not in said:
        wrong.append(f"{named}: said {said!r}")
    return wrong


@pytest.mark.parametrize("processes", [2, 4])
def test_one_process_killed_in_each_stage(processes, tmp_path, tally):
    failures, tried = [], 0
    for stage in STAGES:
        for rank in {0, processes - 1} if stage != "a checkpoint" else {0}:
            failures += one_killed(tmp_path / f"{stage} {rank}", processes, stage, rank)
            tried += 1
    tally(f"one of {processes} processes killed", tried, failures)
