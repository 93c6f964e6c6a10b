"""Several plans of equal layout from claims to commits, with one read of their sources.

each trial    claim -> trust what an earlier run wrote of it
all of them   units to workers, each with the trials that lack it; receipts as they land
each trial    publish, with its last receipt

Claims, receipts and commits are each trial's own: one that fails fails alone, and one that was
killed is finished by the same sweep or by a merge of its own recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Literal

from raymerge.errors import ClusterError, RaymergeError, SourceError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.plan.memory import Budget
from raymerge.plan.rebase import RebasedPlan, Union
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.plan.units import dispatch_order
from raymerge.runtime.destination import Destination, claim, finished
from raymerge.runtime.driver import (
    MergeResult,
    Meter,
    check_apart,
    published,
    result_before,
    result_of,
)
from raymerge.runtime.engine import Engine
from raymerge.runtime.events import OnEvent, nobody, phase
from raymerge.runtime.filling import BESIDE_THREADS, Filling, names_of
from raymerge.runtime.preflight import leave_nonce
from raymerge.runtime.read_back import ReadBack
from raymerge.runtime.receipt import Receipt
from raymerge.runtime.settings import (
    OnProgress,
    Progress,
    RunSettings,
    TrialSettings,
    stage_source,
)
from raymerge.runtime.stopping import StoppedError
from raymerge.runtime.tokenizer_files import files_beside
from raymerge.storage.store import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A plan and where it goes."""

    plan: Plan
    out: str
    overwrite: bool
    """Whether it replaces whatever is there."""


OnEnd = Callable[[int, MergeResult | RaymergeError], None]
"""Told of a task by its position: its checkpoint is whole, or it failed."""
StartEngine = Callable[[RunSettings, OnProgress], Engine]


def execute_together(
    tasks: Sequence[Task],
    union: Union,
    start_engine: StartEngine,
    on_end: OnEnd,
    *,
    budget: Budget,
    device: Literal["cpu", "cuda"],
    on_progress: OnProgress,
    access: Access,
    on_event: OnEvent = nobody,
) -> None:
    """Run plans into their destinations.

    Args:
        tasks: Of equal shards and units.
        union: Of their plans, in order.
        start_engine: Makes the engine for what is left to do.
        on_end: Told of each task once.
        budget: Of a thread that merges for all tasks.
        device: What merges.
        on_progress: Told of every piece of work done, from any thread.
        access: How storage is reached.
        on_event: Told of phases, shards and outputs; engines tell of units by themselves.

    Raises:
        SourceError: A source changed or cannot be read.
        ClusterError: There is nothing to run on.
    """
    meter = Meter(on_progress)
    with ExitStack() as stack:
        # Closed last: until then trials wait for what it hashes.
        read_back = stack.enter_context(closing(ReadBack(BESIDE_THREADS)))
        with phase(on_event, "claim"):
            entered = (
                _Trial(i, task, on_end, access, read_back=read_back, on_event=on_event)
                for i, task in enumerate(tasks)
            )
            promised: dict[int, int] = {}
            trials = [one for one in entered if one.enter(stack, promised)]
            # Not before all have seen what room there is: this takes it.
            for one in trials:
                one.filling.prepare_ahead()
        if not trials:
            return
        own = [union.plans[one.position] for one in trials]
        settings = _settings(trials, union, own, budget=budget, device=device, access=access)
        with phase(on_event, "engine"):
            engine = stack.enter_context(closing(start_engine(settings, meter.add)))
        with phase(on_event, "merge"):
            _run(trials, [rebased.units for rebased in own], engine, meter)


class _Trial:
    """One task, from its claim to its commit."""

    destination: Destination
    filling: Filling

    def __init__(
        self,
        position: int,
        task: Task,
        on_end: OnEnd,
        access: Access,
        *,
        read_back: ReadBack,
        on_event: OnEvent,
    ) -> None:
        self.task = task
        self._tell = on_event
        self.ended = False
        self._ending = Lock()
        self.position = position
        self._on_end = on_end
        self._access = access
        self._read_back = read_back
        self._began = perf_counter()
        self._written_bytes = 0

    def enter(self, stack: ExitStack, promised: MutableMapping[int, int]) -> bool:
        """Claim its destination and see what is left; whether anything is."""
        plan, out = self.task.plan, self.task.out
        result = None
        with self.failing_alone():
            check_apart(plan, out)
            found = None if self.task.overwrite else finished(out, plan.digest, access=self._access)
            if found is None:
                self._claim(stack, promised)
            else:
                result = result_before(plan, out, found, began=self._began)
        if result is not None:
            self._end(result)
        return not self.ended

    def _claim(self, stack: ExitStack, promised: MutableMapping[int, int]) -> None:
        plan = self.task.plan
        # Read before hours of work: what cannot be read at the end is found now.
        self._beside = files_beside(plan, self._access)
        self.destination = claim(
            self.task.out,
            plan,
            names=names_of(plan),
            overwrite=self.task.overwrite,
            access=self._access,
            read_back=self._read_back,
        )
        stack.enter_context(closing(self.destination))
        found = self.destination.receipts()
        self.destination.check_space(plan.bytes_written, promised)
        self.filling = stack.enter_context(closing(Filling(plan, self.destination, self._tell)))
        self.filling.trust(found)

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Take an error that is not the sources' or the cluster's as this trial's end."""
        try:
            yield
        except (SourceError, ClusterError, StoppedError):
            raise
        except RaymergeError as error:
            self.fail(error)

    def fail(self, error: RaymergeError) -> None:
        """End with an error, or with the reason for it: another driver has the destination."""
        if self.ended:
            return
        if hasattr(self, "destination"):
            try:
                self.destination.check()
            except RaymergeError as taken:
                error = taken
        self._end(error)

    def lacks(self, unit: int) -> bool:
        """Whether a unit is still to be written."""
        return not self.ended and unit not in self.filling.receipts

    def prepare(self, unit: int) -> None:
        """Before a unit is begun."""
        with self.failing_alone():
            self.filling.prepare(self.task.plan.units[unit])

    def check(self) -> None:
        """While nothing ends: see that the destination is still this driver's."""
        if not self.ended:
            with self.failing_alone():
                self.destination.check()

    def land(self, unit: int, result: Receipt | RaymergeError) -> None:
        """Take in what became of a unit."""
        if isinstance(result, RaymergeError):
            self.fail(result)
        elif not self.ended:
            with self.failing_alone():
                own = self.task.plan.units[unit]
                if self.lacks(unit):
                    self._written_bytes += sum(node.slot.nbytes for node in own.nodes)
                self.filling.land(own, result)

    @property
    def whole(self) -> bool:
        """Whether every unit has landed and nothing was published yet."""
        return not self.ended and len(self.filling.receipts) == len(self.task.plan.units)

    def publish(self, engine: Engine, done: Progress) -> None:
        """Commit. `done` is what was read and retried for it."""
        result = None
        with self.failing_alone():
            with phase(self._tell, "publish"):
                shards = self.filling.publish(self._beside)
            written = done + Progress(written_bytes=self._written_bytes)
            result = result_of(
                self.task.plan,
                self.task.out,
                shards,
                resumed=len(self.filling.resumed),
                began=self._began,
                ran=engine,
                done=written,
            )
            self._tell(published(result))
        # What goes wrong with the record of it is no failure of the trial, and ends the sweep.
        if result is not None:
            self._end(result)

    def _end(self, result: MergeResult | RaymergeError) -> None:
        # A disk that is full fails every thread that waits for a shard to be made ready.
        with self._ending:
            if self.ended:
                return
            self.ended = True
        self._on_end(self.position, result)


def _settings(
    trials: Sequence[_Trial],
    union: Union,
    plans: Sequence[RebasedPlan],
    *,
    budget: Budget,
    device: Literal["cpu", "cuda"],
    access: Access,
) -> RunSettings:
    """What workers have to know."""
    own = tuple(
        TrialSettings(
            units_at=one.destination.units_at,
            seed=rebased.seed,
            nan=rebased.nan,
            labels=rebased.labels,
            nonce=leave_nonce(one.destination),
        )
        for one, rebased in zip(trials, plans, strict=True)
    )
    return RunSettings(
        sources=(*union.sources, *(stage_source(str(stage.name)) for stage in union.stages)),
        units_at=own[0].units_at,
        seed=own[0].seed,
        nan=own[0].nan,
        budget=budget,
        device=device,
        access=access,
        stages=union.stages,
        trials=own,
    )


def _run(
    trials: Sequence[_Trial],
    own_units: Sequence[tuple[Unit, ...]],
    engine: Engine,
    meter: Meter,
) -> None:
    """Merge what is left, and publish each trial when it is whole."""

    def prepare(unit: SweepUnit) -> SweepUnit:
        left = [position for position in unit.trials if not trials[position].ended]
        for position in left:
            trials[position].prepare(unit.number)
        return unit.without({position for position in unit.trials if trials[position].ended})

    def check() -> None:
        for one in trials:
            one.check()

    units = list(_units_left(trials, own_units))
    _publish(trials, engine, meter)
    for unit, results in engine.run("merge_trials", units, before=prepare, meanwhile=check):
        for position, result in zip(unit.trials, results, strict=True):
            trials[position].land(unit.number, result)
        _publish(trials, engine, meter)


def _units_left(
    trials: Sequence[_Trial], own_units: Sequence[tuple[Unit, ...]]
) -> Iterator[SweepUnit]:
    """Every unit that a trial lacks, with those that do, in the order to begin them."""
    for unit in dispatch_order(trials[0].task.plan.units):
        left = [position for position, one in enumerate(trials) if one.lacks(unit.number)]
        if left:
            yield SweepUnit(
                number=unit.number,
                trials=tuple(left),
                units=tuple(own_units[position][unit.number] for position in left),
            )


def _publish(trials: Sequence[_Trial], engine: Engine, meter: Meter) -> None:
    """Commit what is whole."""
    whole = [one for one in trials if one.whole]
    total = meter.total
    for one in whole:
        # All that is read is read for all of them.
        own = Progress(read_bytes=total.read_bytes // len(trials), retries=total.retries)
        one.publish(engine, own)
