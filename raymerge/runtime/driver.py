"""One merge from claim to commit, whatever the engine.

claim -> trust what an earlier run wrote -> survey, if the plan has one
      -> units to workers, receipts as they land, a shard's sha256 with its last one
      -> publish
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

from raymerge.checkpoint.index import RECORD_NAME
from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, ConflictError, StorageError
from raymerge.kernels.identity import kernel_hash
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.plan.units import dispatch_order
from raymerge.runtime.card import CARD_NAME, model_card
from raymerge.runtime.commit import Claim, finished_record
from raymerge.runtime.engine import Engine
from raymerge.runtime.record import ShardRecord, run_record
from raymerge.runtime.settings import OnProgress, Progress, Receipt
from raymerge.runtime.side_files import side_files
from raymerge.runtime.survey import surveyed_units
from raymerge.runtime.tokenizer_files import with_tokenizer
from raymerge.storage.mounts import free_bytes
from raymerge.storage.posix import PosixFolder, PosixShard
from raymerge.units import format_bytes

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
    resumed_units: int
    """Units of an earlier run that were found whole and not run again."""
    shards: tuple[ShardRecord, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge merge --json`."""
        return asdict(self)


class Meter:
    """Bytes moved so far; what workers report is added up here."""

    def __init__(self, listener: OnProgress) -> None:
        self.read_bytes = 0
        self.written_bytes = 0
        self._listener = listener
        self._lock = Lock()

    def add(self, progress: Progress) -> None:
        """Count a report and pass it on."""
        with self._lock:
            self.read_bytes += progress.read_bytes
            self.written_bytes += progress.written_bytes
        self._listener(progress)


def execute(
    plan: Plan,
    out: Path,
    start_engine: Callable[[str, OnProgress], Engine],
    *,
    overwrite: bool,
    on_progress: OnProgress,
) -> MergeResult:
    """Run a plan into a folder.

    Args:
        plan: What to run.
        out: Destination folder.
        start_engine: Makes the engine, given the folder where shards are filled and where to report
            progress. Called once the destination is ours.
        overwrite: Replace whatever `out` holds.
        on_progress: Told of every piece of work done, from any thread.

    Raises:
        ConflictError: The destination is held, or was taken while the merge ran.
        StorageError: It cannot be written or is too small.
        SourceError: A source changed or cannot be read.
        NonFiniteError: NaN or Inf in a source or a result.
    """
    began = perf_counter()
    _refuse_sources(plan, out)
    record = None if overwrite else finished_record(out, plan.digest)
    if record is not None:
        shards = tuple(ShardRecord(**shard) for shard in record["shards"])
        return _result(plan, out, shards, engine="none", resumed=len(plan.units), began=began)
    meter = Meter(on_progress)
    names = [shard.name for shard in plan.shards] + [CARD_NAME, RECORD_NAME]
    claim = Claim(out, digest=plan.digest, overwrite=overwrite, names=names)
    with closing(claim):
        try:
            engine, resumed, shards = _perform(plan, claim, start_engine, meter)
        except (CommitError, OSError):
            # Another driver that took the destination has removed what this one wrote.
            claim.check()
            raise
    return _result(
        plan,
        out,
        shards,
        engine=engine.name,
        resumed=resumed,
        began=began,
        workers=engine.workers,
        retries=engine.retries,
        meter=meter,
    )


def _refuse_sources(plan: Plan, out: Path) -> None:
    """A merge into one of its sources would overwrite what it reads."""
    for source in plan.sources:
        folder = PosixFolder(source.location).path("")
        if out.exists() and folder.exists() and out.samefile(folder):
            raise ConflictError(
                f"{out} is the source {source.label}; give another folder",
                source=source.label,
            )


def _perform(
    plan: Plan, claim: Claim, start_engine: Callable[[str, OnProgress], Engine], meter: Meter
) -> tuple[Engine, int, tuple[ShardRecord, ...]]:
    """Run what is left and publish; returns the engine, the units resumed and the shards."""
    # Read before hours of work: what cannot be read at the end is found now.
    beside = with_tokenizer(plan, side_files(plan, PosixFolder(plan.donor.location)))
    found = claim.receipts()
    _check_space(plan, claim.folder)
    with closing(_Run(plan, claim)) as run:
        resumed = run.trust(found)
        run.prepare_ahead()
        with closing(start_engine(str(claim.folder), meter.add)) as engine:
            units = plan.units
            if plan.surveyed and len(resumed) < len(units):
                units = surveyed_units(plan, engine, claim.folder)
            left = [unit for unit in dispatch_order(units) if unit.number not in resumed]
            for unit, receipt in engine.run("merge", left, before=run.prepare):
                run.land(unit, receipt)
        shards = run.shard_records()
    files = {
        **beside,
        CARD_NAME: model_card(plan),
        RECORD_NAME: run_record(plan, shards=shards, kernels=kernel_hash()),
    }
    claim.publish(plan, run.receipts, files)
    return engine, len(resumed), shards


class _Run:
    """Receipts and shards of one run."""

    def __init__(self, plan: Plan, claim: Claim) -> None:
        self._plan = plan
        self._claim = claim
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
        if (receipt.shard, receipt.start, receipt.stop) != planned:
            return False
        path = self._path(unit.shard)
        return path.exists() and _sha256(path, unit.start, unit.stop) == receipt.sha256

    def prepare_ahead(self) -> None:
        """Begin to give every shard that is not filled its length, while the engine starts."""
        for unit in dispatch_order(self._plan.units):
            if self._left[unit.shard] and unit.shard not in self._prepared:
                shard = self._shards[unit.shard]
                self._prepared[shard.name] = self._pool.submit(self._prepare, shard)

    def _prepare(self, shard: Shard) -> None:
        self._claim.check()
        with PosixShard(self._claim.folder / shard.name, shard.nbytes) as file:
            file.write_at(shard.header, 0)

    def prepare(self, unit: Unit) -> None:
        """Before a unit is begun: the destination is still ours, its shard has its full length."""
        self._claim.check()
        self._prepared[unit.shard].result()

    def land(self, unit: Unit, receipt: Receipt) -> None:
        """Keep a unit's receipt, and hash its shard if it was the last one."""
        if unit.number in self.receipts:
            return
        self.receipts[unit.number] = receipt
        self._claim.keep(receipt)
        self._left[unit.shard] -= 1
        if not self._left[unit.shard]:
            shard = self._shards[unit.shard]
            self._hashes[shard.name] = self._pool.submit(self._hash, shard, receipt)

    def _hash(self, shard: Shard, last: Receipt) -> str:
        """The sha256 of a filled shard: its only unit's, or read back."""
        path = self._path(shard.name)
        with path.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                raise CommitError(f"{path} does not begin with its planned header", file=shard.name)
        if (last.start, last.stop) == (0, shard.nbytes):
            return last.sha256
        return _sha256(path, 0, shard.nbytes)

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

    def _path(self, shard: str) -> Path:
        return self._claim.folder / shard


def _sha256(path: Path, start: int, stop: int) -> str:
    digest = hashlib.sha256()
    piece = bytearray(2**20)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            count = file.readinto(memoryview(piece)[: min(len(piece), stop - start)])
            if not count:
                break
            digest.update(memoryview(piece)[:count])
            start += count
    return digest.hexdigest()


def _check_space(plan: Plan, folder: Path) -> None:
    present = sum(path.stat().st_blocks * 512 for path in folder.glob("*.safetensors"))
    needed = plan.bytes_written - present
    free = free_bytes(folder)
    if needed > free:
        raise StorageError(
            f"{folder.parent.parent} has {format_bytes(free)} ({free} bytes) free and "
            f"{format_bytes(needed)} ({needed} bytes) are needed; free some or give another folder"
        )


def _result(
    plan: Plan,
    out: Path,
    shards: Sequence[ShardRecord],
    *,
    engine: str,
    resumed: int,
    began: float,
    workers: int = 0,
    retries: int = 0,
    meter: Meter | None = None,
) -> MergeResult:
    return MergeResult(
        output=str(out),
        digest=plan.digest,
        tensors=len(plan.nodes),
        parameters=plan.parameters,
        bytes_read=meter.read_bytes if meter else 0,
        bytes_written=meter.written_bytes if meter else 0,
        seconds=round(perf_counter() - began, 3),
        engine=engine,
        workers=workers,
        retries=retries,
        resumed_units=resumed,
        shards=tuple(shards),
    )
