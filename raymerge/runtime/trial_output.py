"""One trial's part of a unit, on its way to its shard: what fails there ends that trial alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter, time

from raymerge.errors import ClusterError, RaymergeError, SourceError, StorageError
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Unit
from raymerge.runtime.hashing import UnitHash, unit_hash
from raymerge.runtime.receipt import Receipt, TensorReceipt
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.shards import unit_writer
from raymerge.runtime.stopping import StoppedError

ENDS_ALL = (SourceError, ClusterError, StoppedError)
"""What is not one trial's own error."""


class Output:
    """One trial's unit on its way to its shard.

    Args:
        unit: Which.
        settings: The trial's.
        worker: Who writes it, as its receipt has it.
        on_progress: Told of what is written.
    """

    def __init__(
        self, unit: Unit, settings: RunSettings, *, worker: str, on_progress: OnProgress
    ) -> None:
        self.unit = unit
        self.settings = settings
        self.error: RaymergeError | None = None
        self._began, self._clock = time(), perf_counter()
        self._worker = worker
        self._on_progress = on_progress
        self._tensors: list[TensorReceipt] = []
        self._receipt: Receipt | None = None
        self._hashes: UnitHash | None = None
        with self.failing_alone():
            self._writer = unit_writer(settings.units_at, unit, settings.access)
            if unit.is_whole_shard:
                self._hashes = unit_hash(self._writer.head, whole_shard=True)

    def failing_alone(self) -> Alone:
        """Take an error of this trial as its own, and do nothing more for it."""
        return Alone([self])

    def write(self, piece: Bytes) -> None:
        """The next bytes."""
        with self.failing_alone():
            self._writer.write(piece.data)
            if self._hashes is not None:
                self._hashes.update(piece)
            self._on_progress(Progress(written_bytes=piece.nbytes))

    @property
    def hashes(self) -> bool:
        """Whether it hashes what it writes: its unit is a whole shard."""
        return self._hashes is not None

    def end_tensor(self, receipt: TensorReceipt) -> None:
        """A tensor is written; its hash is taken from the receipt unless this has taken it."""
        if self._hashes is not None:
            receipt = replace(receipt, sha256=self._hashes.end_tensor())
        self._tensors.append(receipt)

    def finish(self) -> None:
        """Return once all is safe."""
        if self.error is not None:
            return
        with self.failing_alone():
            shard_sha256 = self._hashes.shard() if self._hashes else None
            stored = self._writer.finish(shard_sha256)
            self._receipt = Receipt(
                unit=self.unit.number,
                shard=self.unit.shard,
                start=self.unit.start,
                stop=self.unit.stop,
                head_sha256=hashlib.sha256(self._writer.head).hexdigest(),
                tensors=tuple(self._tensors),
                shard_sha256=shard_sha256,
                stored=stored,
                worker=self._worker,
                began=self._began,
                seconds=round(perf_counter() - self._clock, 6),
            )

    def result(self) -> Receipt | RaymergeError:
        """Its receipt, or what it failed with."""
        result = self.error or self._receipt
        assert result is not None, self.unit.shard
        return result

    def fail(self, error: RaymergeError) -> None:
        """Write nothing more."""
        # Without the frames that it came through: they hold the thread's buffers.
        error.__cause__ = error.__context__ = None
        self.error = self.error or error.with_traceback(None)
        self.close()

    def close(self) -> None:
        """Let go of the shard; what is not finished leaves nothing that would be trusted."""
        if hasattr(self, "_writer"):
            writer = self._writer
            del self._writer
            with suppress(StorageError):
                writer.__exit__(None, None, None)


class Alone:
    """Where errors end some trials and not the others."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs

    def __enter__(self) -> None:
        """See above."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, RaymergeError) or isinstance(error, ENDS_ALL):
            return False
        for output in self._outputs:
            output.fail(error)
        return True
