"""The command `hookflat study`: what there is, what is done about the rest, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from hookflat.errors import TrainingFailed
from hookflat.recipe.merging import assignment
from hookflat.studies.execution import Plan, make, submit
from hookflat.studies.study import Study
from hookflat.terminal import duration

Say = Callable[[str], None]


def say_plan(plan: Plan, *, jobs: int, redo: bool, every: bool, say: Say) -> None:
    """How many runs are in which state, and what changed; `every`: a line for each run."""
    study, states = plan.study, plan.states
    say(f"{study.name}: {len(study.jobs)} runs in {study.folder}")
    left = f", about {duration(3600 * plan.hours / jobs)} left" if plan.hours else ""
    say("  " + ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items()) + left)
    changes = plan.changes()
    for name, changed in changes.items():
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        say(f"changed  {name}: {'; '.join(changed[:3])}{more}")
    if changes and not redo:
        say("  --redo moves them aside and makes them anew")
    for name, state in states.items() if every else ():
        say(f"{state:<8} {name}")


def carry_out(study: Study, *, jobs: int, processes: int, redo: bool, slurm: Iterable[str] | None, say: Say) -> None:
    """Make what is missing, here or on a cluster (`slurm`: its parameters). Raises TrainingFailed for failed runs."""
    if slurm is not None:
        submitted = submit(study, processes=processes, redo=redo, **dict(assignment(s) for s in slurm))
        say(f"{len(submitted)} jobs submitted; --plan shows how far they are")
        for job in study.jobs:
            if sources := job.waits_for():
                say(f"waits    {job.name}: for {' and '.join(sources)}; the same command submits it once they are made")
        return
    ended = make(study, workers=jobs, processes=processes, redo=redo, say=say)
    for name in (name for name, state in ended.items() if state == "elsewhere"):
        say(f"elsewhere {name}: another process is making it; the same command again goes on with what it leaves")
    failed = [name for name, state in ended.items() if state == "failed"]
    say(", ".join(f"{count} {state}" for state, count in Counter(ended.values()).items()))
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(ended)} runs failed: {', '.join(failed)}; the same command retries"
        )
