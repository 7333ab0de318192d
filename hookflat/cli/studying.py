"""Commands on many runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hookflat import collector
from hookflat.cli.app import Json, Out, Plugin, Set, With, command, print_json, say, say_table
from hookflat.cli.completing import study_names
from hookflat.errors import UserError

if TYPE_CHECKING:
    from hookflat.reporting.comparing import Row
    from hookflat.studies.costing import JobCost


@command()
def study(
    study: Annotated[
        str, typer.Argument(help="A TOML file, or a shipped study such as table1.", autocompletion=study_names)
    ],
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    protocol: Annotated[str, typer.Option(help="Of hookflat eval after each run, instead of the study's.")] = "",
    out: Out = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores or a GPU.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Of each training.")] = 1,
    launcher: Annotated[Literal["here", "slurm"], typer.Option(help="Slurm through submitit.")] = "here",
    slurm: Annotated[list[str], typer.Option(help="timeout_min=600, slurm_partition=gpu ... Repeatable.")] = [],  # noqa: B006
    plan: Annotated[bool, typer.Option("--plan", help="Only show what there is and what is left.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="With --plan: try each recipe here, say what it costs.")] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Make runs of a changed recipe anew, the old ones aside.")
    ] = False,
    json: Json = False,
) -> None:
    """Train and measure everything of a study that is missing. The same command again goes on."""
    from hookflat.studies.command import carry_out, say_plan
    from hookflat.studies.execution import Plan
    from hookflat.studies.study import read_study

    if json and not plan:
        raise UserError("--json goes with --plan")
    if cost and not plan:
        raise UserError("--cost goes with --plan")
    collector.as_usual()
    read = read_study(study, overlays=with_, overrides=set_, plugins=plugin, protocol=protocol, folder=out)
    planned = Plan.of(read)
    costs: list[JobCost] = []
    if cost:
        from hookflat.studies.costing import costs_of  # loads torch

        costs = costs_of(planned, lambda name: None if json else say(f"trying   {name}"))
    if json:
        each = [asdict(job) | {"hours": job.hours} for job in costs]
        print_json(planned.facts() | ({"costs": each} if cost else {}))
        return
    say_plan(planned, jobs=jobs, redo=redo, every=plan, say=say)
    if cost:
        _say_costs(costs, jobs)
        if waiting := [job.name for job in read.jobs if job.waits_for()]:
            say(f"not counted, since what they learn from is not made yet: {', '.join(waiting)}")
        return
    if not plan:
        carry_out(
            read, jobs=jobs, processes=processes, redo=redo, slurm=slurm if launcher == "slurm" else None, say=say
        )


def _say_costs(costs: Sequence[JobCost], jobs: int) -> None:
    """A line for each recipe, and the whole."""
    from hookflat.training.trial import gigabytes

    rows = []
    for job in costs:
        hours = f"{job.cost.hours:.2f}", f"{job.hours:.2f}"
        rows.append((job.name, str(job.count), *hours, *map(gigabytes, (job.cost.memory, job.cost.disk))))
    say_table(("run", "runs", "hours each", "hours", "memory", "disk each"), rows)
    hours, disk = sum(job.hours for job in costs), sum(job.count * job.cost.disk for job in costs)
    say(f"the whole: {hours / jobs:.1f} hours with {jobs} run(s) at once on this device, {gigabytes(disk)} of disk")


@command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs (a study's), or run folders.")],
    out: Out = None,
    protocol: Annotated[str, typer.Option(help="Use the numbers of this one of hookflat eval's.")] = "",
) -> None:
    """The paper's table, figures and statistics from runs, as a page; and what they say of the claim."""
    from hookflat.reporting.writing import report as report_on

    collector.as_usual()  # figures are circles of references
    written = report_on(folders, folder=out, protocol=protocol)
    for text in [*written.verdict, "", *written.details]:
        say(text)
    for name, why in written.left_out:
        say(f"left out  {name}: {why}")
    say(f"{written.page}, and figures, tables and statistics beside it")


@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    json: Json = False,
) -> None:
    """The recipe lines and the numbers in which runs differ."""
    from hookflat.reporting.comparing import compare as compare_runs

    if len(runs) < 2:
        raise UserError("compare takes two run folders or more")
    lines, numbers, damaged = compare_runs(runs)
    for why in damaged:
        print(f"left out  {why}", file=sys.stderr)
    if json:
        parts = {"recipe": lines, "numbers": numbers}
        facts = {part: {row.name: row.values for row in rows} for part, rows in parts.items()}
        print_json({"runs": [str(run) for run in runs]} | facts)
        return
    for title, part in (("recipe", lines), ("numbers", numbers)):
        rows = [row for row in part if row.shown]
        if not rows:
            say(f"{title}: the same")
            continue
        say_table((title, *(run.name for run in runs)), _in_groups(rows))


def _in_groups(rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    """The cells of rows; what many names begin with is a line above them."""
    above = ""
    for row in rows:
        if row.group != above:
            yield (row.group, *("" for _ in row.texts))
        above = row.group
        yield (f"  {row.name.removeprefix(above)[1:]}" if above else row.name, *row.texts)
