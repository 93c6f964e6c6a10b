"""Merge the trials of a round: what the rest of a sweep asks of the machinery below it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raymerge.errors import ClusterError, RaymergeError, SourceError
from raymerge.options import RunOptions, access_of, machine_of
from raymerge.planning import Shelf, fills_together, plan_merge
from raymerge.sweep.groups import OneRead, PlannedTrial, fitting, groups
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.sources import identities
from raymerge.sweep.trial import Trial

if TYPE_CHECKING:
    from raymerge.plan.build import Plan
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.engine import Engine
    from raymerge.runtime.events import OnEvent, TrialEnded
    from raymerge.runtime.settings import OnProgress, RunSettings

MOST_AT_ONCE = 32
"""Merged with one read. More would save a thirtieth of a read each, and every one has a plan in the
driver and files that are open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial: a checkpoint, or the error that it alone ended with."""

    trial: Trial
    result: MergeResult | None
    error: RaymergeError | None
    sources: Mapping[str, str] = field(default_factory=dict)
    """What its sources were: `identities` of its plan."""


OnOutcome = Callable[[Outcome], None]


def portions(trials: Sequence[Trial]) -> Iterator[Sequence[Trial]]:
    """Trials in order, as many at a time as may be merged with one read."""
    for start in range(0, len(trials), MOST_AT_ONCE):
        yield trials[start : start + MOST_AT_ONCE]


def record_of(trial: Trial, outcome: Outcome) -> TrialRecord:
    """What the ledger keeps of an outcome.

    Args:
        trial: With the place that it is going to have.
        outcome: Of the trial, wherever it was merged.
    """
    result = outcome.result
    return TrialRecord(
        name=trial.name,
        digest=result.digest if result else "",
        values=trial.values,
        seed=trial.recipe.seed,
        text=trial.text,
        out=trial.out,
        state="merged" if result else "failed",
        error=str(outcome.error) if outcome.error else None,
        seconds=result.seconds if result else 0.0,
        bytes_read=result.bytes_read if result else 0,
        bytes_written=result.bytes_written if result else 0,
        evaluations=(),
        missed=(),
        score=None,
        sources=outcome.sources,
    )


class Rounds:
    """Merges trials, round after round, with what one start has made ready.

    Args:
        options: See `RunOptions`.
        overwrite: Replace what the trials' destinations hold.
        on_progress: Told of bytes read and written, from any thread.
        on_note: Told how a round is run, in a line a time.
        on_event: Told of what happens, one event at a time, from any thread.
        join: Connects to the cluster, if there is to be one and it is not done yet.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        overwrite: bool,
        on_progress: OnProgress = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
        on_event: OnEvent = lambda _: None,
        join: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._on_note = on_note
        self._on_event = on_event
        self._join = join
        self._busy: Callable[[], bool] = lambda: False
        self._machine = machine_of(options)
        self._shelf = Shelf()

    def yield_to(self, busy: Callable[[], bool]) -> None:
        """Wait for room on the cluster as long as evaluations may hold it.

        Args:
            busy: Whether any are under way.
        """
        self._busy = busy

    def with_shards(self, limit: int | None) -> Rounds:
        """The same, with another limit of an output shard."""
        other = copy(self)
        other._options = {**self._options, "shard_bytes": limit}  # noqa: SLF001
        return other

    def plan(self, trial: Trial) -> Plan:
        """What a trial would be, from its sources as they are now.

        Raises:
            RaymergeError: It cannot be planned.
        """
        return plan_merge(
            trial.recipe,
            out=trial.out,
            machine=self._machine,
            options=self._options,
            shelf=self._shelf,
        )

    def merge(
        self, trials: Sequence[Trial], on_outcome: OnOutcome, *, again: Collection[str] = ()
    ) -> None:
        """Merge every trial into its place, those of equal layout with one read of their sources.

        Args:
            trials: In any order; no two of one name or one place.
            on_outcome: Told of each as soon as its checkpoint is whole, or it failed.
            again: Names of those that replace what their place holds.

        Raises:
            SourceError: A source that trials share cannot be read: all of them end.
            ClusterError: There is nothing to run on.
        """

        def end(outcome: Outcome) -> None:
            self._on_event(_ended(outcome))
            on_outcome(outcome)

        for one_read in self.reads(trials, end):
            self._merge_together(one_read, end, again)

    def reads(self, trials: Sequence[Trial], on_outcome: OnOutcome) -> Iterator[OneRead]:
        """The trials that are merged with one read each time, planned as they are asked for.

        Args:
            trials: In any order; no two of one name or one place.
            on_outcome: Told of those that cannot be planned.
        """
        from raymerge.runtime.events import phase

        for some in portions(trials):
            with phase(self._on_event, "plan"):
                planned = list(self._planned(some, on_outcome))
            for group in groups(planned):
                yield from fitting(group, self._on_note)

    def _planned(self, trials: Sequence[Trial], on_outcome: OnOutcome) -> Iterator[PlannedTrial]:
        """Plans of those that can be planned; of the others what is wrong with each."""
        from raymerge.runtime.watching import planned_event

        for trial in trials:
            try:
                plan = self.plan(trial)
            except RaymergeError as error:
                on_outcome(Outcome(trial=trial, result=None, error=error))
            else:
                self._on_event(planned_event(plan, self._machine.engine, self._machine.device))
                whole = not fills_together(trial.out)
                yield PlannedTrial(trial=trial, plan=plan, whole_shards=whole)

    def _merge_together(
        self, one_read: OneRead, on_outcome: OnOutcome, again: Collection[str]
    ) -> None:
        trials, union, budget = one_read.trials, one_read.union, one_read.budget
        if union is None or budget is None:
            self._merge_alone(trials[0], on_outcome, again)
            return
        from raymerge.runtime.together import Task, execute_together

        def end(position: int, result: MergeResult | RaymergeError) -> None:
            one = trials[position]
            if isinstance(result, RaymergeError):
                on_outcome(Outcome(trial=one.trial, result=None, error=result))
            else:
                on_outcome(_merged(one, result))

        execute_together(
            [
                Task(plan=one.plan, out=one.trial.out, overwrite=self._replaces(one, again))
                for one in trials
            ],
            union,
            self._start_engine,
            end,
            budget=budget,
            device=self._machine.device,
            on_progress=self._on_progress,
            access=access_of(self._options),
            on_event=self._on_event,
        )

    def _replaces(self, one: PlannedTrial, again: Collection[str]) -> bool:
        return self._overwrite or one.trial.name in again

    def _merge_alone(
        self, one: PlannedTrial, on_outcome: OnOutcome, again: Collection[str]
    ) -> None:
        from raymerge.api import run_plan

        try:
            result = run_plan(
                one.plan,
                one.trial.out,
                machine=self._machine,
                overwrite=self._replaces(one, again),
                on_progress=self._on_progress,
                options=self._options,
                on_event=self._on_event,
                start_engine=self._start_engine,
            )
        except (SourceError, ClusterError):
            raise
        except RaymergeError as error:
            on_outcome(Outcome(trial=one.trial, result=None, error=error))
        else:
            on_outcome(_merged(one, result))

    def _start_engine(self, settings: RunSettings, report: OnProgress) -> Engine:
        from raymerge.api import engine_for

        self._join()
        return engine_for(
            settings,
            self._machine,
            report,
            self._options,
            on_event=self._on_event,
            busy=self._busy,
        )


def _merged(one: PlannedTrial, result: MergeResult) -> Outcome:
    return Outcome(trial=one.trial, result=result, error=None, sources=identities(one.plan))


def _ended(outcome: Outcome) -> TrialEnded:
    from raymerge.runtime.events import TrialEnded

    return TrialEnded(
        trial=outcome.trial.name,
        output=outcome.trial.out,
        digest=outcome.result.digest if outcome.result else "",
        error=type(outcome.error).__name__ if outcome.error else None,
    )
