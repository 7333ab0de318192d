"""What the runs of a study that are missing will cost: one of each recipe is tried, its seeds cost the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hookflat.recipe.catalogue import catalogue_of
from hookflat.recipe.loading import load_recipe
from hookflat.studies.execution import Plan
from hookflat.studies.jobs import Job
from hookflat.training.cost import Cost, cost_of


@dataclass(frozen=True)
class JobCost:
    """What each of `count` runs costs that differ in their seed alone."""

    name: str
    count: int
    cost: Cost

    @property
    def hours(self) -> float:
        """Of all of them."""
        return self.count * self.cost.hours


def costs_of(plan: Plan, told: Callable[[str], None] = lambda name: None) -> list[JobCost]:
    """Of the runs that are to be made; those that were begun are counted whole, rescaled networks and checkpoints not.

    Nor are those that learn from runs without a network yet. `told`: given the name of each before it is tried.
    """
    groups: dict[Any, list[Job]] = {}
    for job in plan.study.jobs:
        counted = isinstance(job, Job) and not job.rescaled and not job.waits_for()
        if counted and plan.states[job.name] in ("todo", "begun"):
            same = tuple(f"{key}={value}" for key, value in job.overrides if key != "run.seed")
            groups.setdefault((job.recipe, same), []).append(job)
    costs = []
    for jobs in groups.values():
        told(jobs[0].name)
        costs.append(JobCost(jobs[0].name, len(jobs), _cost(jobs[0])))
    return costs


def _cost(job: Job) -> Cost:
    tables, known = job.resolved(), catalogue_of(job.plugins)
    recipe = load_recipe(tables, name=job.name, catalogue=known)
    if not job.protocol:
        return cost_of(recipe)
    measured = load_recipe(tables | {"eval": job.protocol_tables(tables)}, name=job.name, catalogue=known)
    return cost_of(recipe, [(measured, job.which)])
