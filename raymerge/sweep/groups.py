"""Which trials can be merged in one run over their sources. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymerge.plan.build import Plan
from raymerge.plan.rebase import recut
from raymerge.sweep.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial:
    """A trial, and what it comes to."""

    trial: Trial
    plan: Plan
    whole_shards: bool
    """Whether its destination takes nothing smaller."""


Group = tuple[PlannedTrial, ...]
"""Trials of equal layout, whose plans are cut into the same units."""


def groups(trials: Sequence[PlannedTrial]) -> tuple[Group, ...]:
    """Put trials of equal layout together; both groups and trials stay in order.

    A trial whose thresholds are the model's is alone: it needs a survey of its own.
    """
    found: dict[object, list[PlannedTrial]] = {}
    for position, one in enumerate(trials):
        plan = one.plan
        own = position if plan.surveyed else None
        found.setdefault((plan.shards, one.whole_shards, own), []).append(one)
    return tuple(map(_cut_alike, found.values()))


def _cut_alike(trials: Sequence[PlannedTrial]) -> Group:
    finest = max((one.plan for one in trials), key=lambda plan: len(plan.units))
    ranges = _ranges(finest)
    return tuple(
        one if _ranges(one.plan) == ranges else replace(one, plan=recut(one.plan, finest))
        for one in trials
    )


def _ranges(plan: Plan) -> list[tuple[str, int, int]]:
    return [(unit.shard, unit.start, unit.stop) for unit in plan.units]
