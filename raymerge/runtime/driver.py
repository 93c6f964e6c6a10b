"""One merge from claim to commit, whatever the engine.

claim -> trust what an earlier run wrote -> survey, if the plan has one
      -> units to workers, receipts as they land, a shard's sha256 with its last one
      -> publish
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from threading import Lock
from time import perf_counter
from typing import Any

from raymerge.errors import CommitError, ConflictError
from raymerge.plan.build import Plan
from raymerge.plan.units import dispatch_order
from raymerge.runtime.destination import Destination, claim, finished
from raymerge.runtime.engine import Engine
from raymerge.runtime.events import OnEvent, Published, UnitsResumed, nobody, phase
from raymerge.runtime.filling import Filling, names_of
from raymerge.runtime.record import ShardRecord
from raymerge.runtime.settings import OnProgress, Progress
from raymerge.runtime.survey import surveyed_units
from raymerge.runtime.tokenizer_files import files_beside
from raymerge.storage import same_place
from raymerge.storage.store import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge did; the fields are those of `raymerge merge --json`."""

    output: str
    digest: str
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    engine: str
    workers: int
    retries: int
    """Requests to storage that were made again, and units that were begun again."""
    lost_workers: int
    """Workers that were lost on the way."""
    redone_units: int
    """Units that were begun again, because a worker was lost or took too long over them."""
    resumed_units: int
    """Units of an earlier run that were found whole and not run again."""
    shards: tuple[ShardRecord, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge merge --json`."""
        return asdict(self)


StartEngine = Callable[[Destination, OnProgress], Engine]


class Meter:
    """What was done so far; what workers report is added up here."""

    def __init__(self, listener: OnProgress) -> None:
        self.total = Progress()
        self._listener = listener
        self._lock = Lock()

    def add(self, progress: Progress) -> None:
        """Count a report and pass it on."""
        with self._lock:
            self.total += progress
        self._listener(progress)


def execute(
    plan: Plan,
    out: str,
    start_engine: StartEngine,
    *,
    overwrite: bool,
    on_progress: OnProgress,
    access: Access,
    on_event: OnEvent = nobody,
) -> MergeResult:
    """Run a plan into a destination.

    Args:
        plan: What to run.
        out: Path or URL.
        start_engine: Makes the engine, given the destination once it is ours, and where to report
            progress.
        overwrite: Replace whatever `out` holds.
        on_progress: Told of every piece of work done, from any thread.
        access: How storage is reached.
        on_event: Told of phases, shards and the end; engines tell of units by themselves.

    Raises:
        ConflictError: The destination is held, or was taken while the merge ran.
        StorageError: It cannot be written or is too small.
        SourceError: A source changed or cannot be read.
        NonFiniteError: NaN or Inf in a source or a result.
    """
    began = perf_counter()
    check_apart(plan, out)
    record = None if overwrite else finished(out, plan.digest, access=access)
    if record is not None:
        nbytes = sum(unit.nbytes for unit in plan.units)
        on_event(UnitsResumed(units=len(plan.units), nbytes=nbytes))
        return result_before(plan, out, record, began=began)
    meter = Meter(on_progress)
    with phase(on_event, "claim"):
        destination = claim(out, plan, names=names_of(plan), overwrite=overwrite, access=access)
    with closing(destination):
        try:
            engine, resumed, shards = _perform(
                plan, destination, start_engine, meter, access=access, on_event=on_event
            )
        except (CommitError, OSError):
            # Another driver that took the destination has removed what this one wrote.
            destination.check()
            raise
    result = result_of(
        plan,
        out,
        shards,
        resumed=resumed,
        began=began,
        ran=engine,
        done=meter.total,
    )
    on_event(published(result))
    return result


def published(result: MergeResult) -> Published:
    """The event of an output that is there."""
    counted = Published.__dataclass_fields__.keys() - {"time_s"}
    return Published(**{name: getattr(result, name) for name in counted})


def check_apart(plan: Plan, out: str) -> None:
    """Raise ConflictError if a destination is one of the plan's sources."""
    for source in plan.sources:
        if same_place(out, source.location):
            raise ConflictError(
                f"{out} is the source {source.label}; give another place", source=source.label
            )


def _perform(
    plan: Plan,
    destination: Destination,
    start_engine: StartEngine,
    meter: Meter,
    *,
    access: Access,
    on_event: OnEvent,
) -> tuple[Engine, int, tuple[ShardRecord, ...]]:
    """Run what is left and publish; returns the engine, the units resumed and the shards."""
    # Read before hours of work: what cannot be read at the end is found now.
    beside = files_beside(plan, access)
    found = destination.receipts()
    destination.check_space(plan.bytes_written)
    with closing(Filling(plan, destination, on_event)) as run:
        run.trust(found)
        run.prepare_ahead()
        with phase(on_event, "engine"):
            engine = start_engine(destination, meter.add)
        with closing(engine):
            units = plan.units
            if plan.surveyed and len(run.resumed) < len(units):
                with phase(on_event, "survey"):
                    units = surveyed_units(plan, engine, destination, on_event)
            left = [unit for unit in dispatch_order(units) if unit.number not in run.resumed]
            done = engine.run("merge", left, before=run.prepare, meanwhile=destination.check)
            with phase(on_event, "merge"):
                for unit, receipt in done:
                    run.land(unit, receipt)
        with phase(on_event, "publish"):
            shards = run.publish(beside)
    return engine, len(run.resumed), shards


def result_before(plan: Plan, out: str, record: Mapping[str, Any], *, began: float) -> MergeResult:
    """The result of a merge that an earlier run has finished, with its raymerge.json."""
    shards = tuple(ShardRecord(**shard) for shard in record["shards"])
    return result_of(plan, out, shards, resumed=len(plan.units), began=began)


def result_of(
    plan: Plan,
    out: str,
    shards: Sequence[ShardRecord],
    *,
    resumed: int,
    began: float,
    ran: Engine | None = None,
    done: Progress | None = None,
) -> MergeResult:
    """The result of a merge that is published.

    Args:
        plan: What was run.
        out: Where to.
        shards: What was written.
        resumed: Units of an earlier run.
        began: When it was begun, by `perf_counter`.
        ran: What ran it; None for what was finished before.
        done: What this run has read and written for it.
    """
    done = done or Progress()
    redone = ran.redone_units if ran else 0
    return MergeResult(
        output=out,
        digest=plan.digest,
        tensors=len(plan.nodes),
        parameters=plan.parameters,
        bytes_read=done.read_bytes,
        bytes_written=done.written_bytes,
        seconds=round(perf_counter() - began, 3),
        engine=ran.name if ran else "none",
        workers=ran.workers if ran else 0,
        retries=redone + done.retries,
        lost_workers=ran.lost_workers if ran else 0,
        redone_units=redone,
        resumed_units=resumed,
        shards=tuple(shards),
    )
