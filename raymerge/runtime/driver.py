"""One merge from claim to commit, whatever the engine.

claim -> trust what an earlier run wrote -> survey, if the plan has one
      -> units to workers, receipts as they land, a shard's sha256 with its last one
      -> publish
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from threading import Lock
from time import perf_counter
from typing import Any

from raymerge.checkpoint.index import RECORD_NAME
from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, ConflictError
from raymerge.kernels.identity import kernel_hash
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.plan.units import dispatch_order
from raymerge.runtime.card import CARD_NAME, model_card
from raymerge.runtime.destination import Destination, claim, finished
from raymerge.runtime.engine import Engine
from raymerge.runtime.ledger import LEDGER_NAMES, ledger
from raymerge.runtime.receipt import Receipt
from raymerge.runtime.record import ShardRecord, run_record
from raymerge.runtime.settings import OnProgress, Progress
from raymerge.runtime.survey import surveyed_units
from raymerge.runtime.tokenizer_files import files_beside
from raymerge.storage import same_place
from raymerge.storage.store import Access

BESIDE_THREADS = 2
"""Shards that are allocated or hashed at once, beside the workers: either takes less time than
filling one."""


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
        self.read_bytes = 0
        self.written_bytes = 0
        self.retries = 0
        self._listener = listener
        self._lock = Lock()

    def add(self, progress: Progress) -> None:
        """Count a report and pass it on."""
        with self._lock:
            self.read_bytes += progress.read_bytes
            self.written_bytes += progress.written_bytes
            self.retries += progress.retries
        self._listener(progress)


def execute(
    plan: Plan,
    out: str,
    start_engine: StartEngine,
    *,
    overwrite: bool,
    on_progress: OnProgress,
    access: Access,
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

    Raises:
        ConflictError: The destination is held, or was taken while the merge ran.
        StorageError: It cannot be written or is too small.
        SourceError: A source changed or cannot be read.
        NonFiniteError: NaN or Inf in a source or a result.
    """
    began = perf_counter()
    for source in plan.sources:
        if same_place(out, source.location):
            raise ConflictError(
                f"{out} is the source {source.label}; give another place", source=source.label
            )
    record = None if overwrite else finished(out, plan.digest, access=access)
    if record is not None:
        shards = tuple(ShardRecord(**shard) for shard in record["shards"])
        return _result(plan, out, shards, resumed=len(plan.units), began=began)
    meter = Meter(on_progress)
    names = [*(shard.name for shard in plan.shards), CARD_NAME, RECORD_NAME, *LEDGER_NAMES.values()]
    destination = claim(out, plan, names=names, overwrite=overwrite, access=access)
    with closing(destination):
        try:
            engine, resumed, shards = _perform(plan, destination, start_engine, meter, access)
        except (CommitError, OSError):
            # Another driver that took the destination has removed what this one wrote.
            destination.check()
            raise
    return _result(
        plan,
        out,
        shards,
        resumed=resumed,
        began=began,
        ran=engine,
        meter=meter,
    )


def _perform(
    plan: Plan,
    destination: Destination,
    start_engine: StartEngine,
    meter: Meter,
    access: Access,
) -> tuple[Engine, int, tuple[ShardRecord, ...]]:
    """Run what is left and publish; returns the engine, the units resumed and the shards."""
    # Read before hours of work: what cannot be read at the end is found now.
    beside = files_beside(plan, access)
    found = destination.receipts()
    destination.check_space(plan.bytes_written)
    with closing(_Run(plan, destination)) as run:
        resumed = run.trust(found)
        run.prepare_ahead()
        with closing(start_engine(destination, meter.add)) as engine:
            units = plan.units
            if plan.surveyed and len(resumed) < len(units):
                units = surveyed_units(plan, engine, destination)
            left = [unit for unit in dispatch_order(units) if unit.number not in resumed]
            done = engine.run("merge", left, before=run.prepare, meanwhile=destination.check)
            for unit, receipt in done:
                run.land(unit, receipt)
        shards = run.shard_records()
    files = {
        **beside,
        **ledger(plan, run.receipts, resumed=resumed),
        CARD_NAME: model_card(plan, on_hub=destination.location.startswith("hf://")),
        RECORD_NAME: run_record(plan, shards=shards, kernels=kernel_hash()),
    }
    destination.publish(plan, run.receipts, files)
    return engine, len(resumed), shards


class _Run:
    """Receipts and shards of one run."""

    def __init__(self, plan: Plan, destination: Destination) -> None:
        self._plan = plan
        self._destination = destination
        self._shards: Mapping[str, Shard] = {shard.name: shard for shard in plan.shards}
        self._left = Counter(unit.shard for unit in plan.units)
        self._prepared: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(BESIDE_THREADS)
        self._hashes: dict[str, Future[str]] = {}
        self.receipts: dict[int, Receipt] = {}

    def trust(self, found: Mapping[int, Receipt]) -> set[int]:
        """Accept the receipts whose bytes are still what they say; returns their units."""
        known = [unit for unit in self._plan.units if unit.number in found]
        whole = self._pool.map(lambda unit: self._is_whole(unit, found[unit.number]), known)
        trusted = [unit for unit, good in zip(known, whole, strict=True) if good]
        for unit in trusted:
            self.land(unit, found[unit.number])
        return {unit.number for unit in trusted}

    def _is_whole(self, unit: Unit, receipt: Receipt) -> bool:
        planned = unit.shard, unit.start, unit.stop
        said = receipt.shard, receipt.start, receipt.stop
        return said == planned and self._destination.trusts(unit, receipt)

    def prepare_ahead(self) -> None:
        """Begin to prepare every shard that is not filled, while the engine starts."""
        for unit in dispatch_order(self._plan.units):
            if self._left[unit.shard] and unit.shard not in self._prepared:
                shard = self._shards[unit.shard]
                prepared = self._pool.submit(self._destination.prepare, shard)
                self._prepared[shard.name] = prepared

    def prepare(self, unit: Unit) -> None:
        """Before a unit is begun: the destination is still ours, its shard can be written."""
        self._destination.check()
        self._prepared[unit.shard].result()

    def land(self, unit: Unit, receipt: Receipt) -> None:
        """Keep a unit's receipt, and hash its shard if it was the last one."""
        again = unit.number in self.receipts
        # Of two writers of an object it is the later one's tag that is found there.
        self.receipts[unit.number] = receipt
        self._destination.keep(receipt)
        if again:
            return
        self._left[unit.shard] -= 1
        if not self._left[unit.shard]:
            shard = self._shards[unit.shard]
            hashed = self._pool.submit(self._destination.shard_sha256, shard, receipt)
            self._hashes[shard.name] = hashed

    def shard_records(self) -> tuple[ShardRecord, ...]:
        """Name, length and sha256 of every shard, once all are filled."""
        if lost := [unit.number for unit in self._plan.units if unit.number not in self.receipts]:
            raise CommitError(f"{len(lost)} units have no receipt, number {lost[0]} first")
        return tuple(
            ShardRecord(shard.name, shard.nbytes, self._hashes[shard.name].result())
            for shard in self._plan.shards
        )

    def close(self) -> None:
        """Drop what has not begun; a run that failed does not wait for it."""
        self._pool.shutdown(cancel_futures=True)


def _result(
    plan: Plan,
    out: str,
    shards: Sequence[ShardRecord],
    *,
    resumed: int,
    began: float,
    ran: Engine | None = None,
    meter: Meter | None = None,
) -> MergeResult:
    return MergeResult(
        output=out,
        digest=plan.digest,
        tensors=len(plan.nodes),
        parameters=plan.parameters,
        bytes_read=meter.read_bytes if meter else 0,
        bytes_written=meter.written_bytes if meter else 0,
        seconds=round(perf_counter() - began, 3),
        engine=ran.name if ran else "none",
        workers=ran.workers if ran else 0,
        retries=(ran.redone_units if ran else 0) + (meter.retries if meter else 0),
        lost_workers=ran.lost_workers if ran else 0,
        redone_units=ran.redone_units if ran else 0,
        resumed_units=resumed,
        shards=tuple(shards),
    )
