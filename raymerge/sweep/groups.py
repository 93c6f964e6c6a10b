"""Which trials can be merged in one run over their sources. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from raymerge.plan.build import Plan
from raymerge.plan.joint import joint_budget
from raymerge.plan.memory import Budget
from raymerge.plan.rebase import Union, recut, unite
from raymerge.sweep.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial:
    """A trial, and what it comes to."""

    trial: Trial
    plan: Plan
    whole_shards: bool
    """Whether its destination takes nothing smaller."""

    @property
    def layout(self) -> object:
        """Equal for trials that can be merged together.

        A trial whose thresholds are the model's is alone: it needs a survey of its own.
        """
        return self.plan.shards, self.whole_shards, self.plan.surveyed and self.trial.name


Group = tuple[PlannedTrial, ...]
"""Trials of equal layout, whose plans are cut into the same units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRead:
    """Trials of a group that are merged with one read of their sources."""

    trials: Group
    union: Union | None
    """Of their plans; None of a single one."""
    budget: Budget | None
    """Of a thread that merges for all of them; likewise."""


def groups(trials: Sequence[PlannedTrial]) -> tuple[Group, ...]:
    """Put trials of equal layout together; both groups and trials stay in order."""
    found: dict[object, list[PlannedTrial]] = {}
    for one in trials:
        found.setdefault(one.layout, []).append(one)
    return tuple(map(_cut_alike, found.values()))


def fitting(group: Group, on_note: Callable[[str], None] = lambda _: None) -> Iterator[OneRead]:
    """A group, in halves as long as its parts do not fit in memory at once.

    Args:
        group: Of one trial or more.
        on_note: Told in a line of each part that does not fit.
    """
    if len(group) == 1:
        yield OneRead(trials=group, union=None, budget=None)
        return
    plans = [one.plan for one in group]
    union = unite(plans)
    budget = joint_budget(plans, union, uploads=group[0].whole_shards)
    if budget is not None:
        yield OneRead(trials=group, union=union, budget=budget)
        return
    half = (len(group) + 1) // 2
    on_note(
        f"{len(group)} trials do not fit --memory at once: their sources are read for {half} and "
        f"for {len(group) - half} of them"
    )
    # Before the halves are put together: that of many plans takes room.
    del plans, union
    yield from fitting(group[:half], on_note)
    yield from fitting(group[half:], on_note)


def _cut_alike(trials: Sequence[PlannedTrial]) -> Group:
    finest = max((one.plan for one in trials), key=lambda plan: len(plan.units))
    ranges = _ranges(finest)
    return tuple(
        one if _ranges(one.plan) == ranges else replace(one, plan=recut(one.plan, finest))
        for one in trials
    )


def _ranges(plan: Plan) -> list[tuple[str, int, int]]:
    return [(unit.shard, unit.start, unit.stop) for unit in plan.units]
