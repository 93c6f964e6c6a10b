"""The sweep's ledger: OUT/raymerge-trials.parquet, a row per trial.

While a sweep runs, what becomes known of a trial is a small file of its own in OUT/.raymerge-sweep,
written beside and renamed: a kill leaves it whole or absent, and no row is ever written twice. When
the sweep ends the newest rows are put together in the one table, and the small files go.

name, digest         of the trial and of its plan
values               JSON, by axis
seed, recipe         the YAML that makes this trial alone
shard_bytes          what --shard-size said; null where it was chosen
out, state, error    see `TrialRecord`
seconds, bytes_read, bytes_written, score, missed
sequence             rising from row to row; of two rows of a trial the later one counts
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from raymerge.errors import ConflictError, SourceError, StorageError
from raymerge.sweep.record import TrialRecord

TRIALS_NAME = "raymerge-trials.parquet"
PARTS_NAME = ".raymerge-sweep"
_LOCK_NAME = "lock"


class Ledger:
    """The rows of a sweep, held by one process at a time.

    Args:
        out: Folder of the sweep.
        shard_bytes: Limit of an output shard that the trials are merged with.

    Raises:
        ConflictError: Another process runs this sweep.
        StorageError: The folder cannot be written.
    """

    def __init__(self, out: Path, *, shard_bytes: int | None) -> None:
        self._out = out
        self._parts = out / PARTS_NAME
        self._shard_bytes = shard_bytes
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._parts / _LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise StorageError(f"{out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(f"{out}: another process runs this sweep; wait for it") from error
        self._rows = read_rows(out)
        self._next = 1 + max((row["sequence"] for row in self._rows.values()), default=0)

    def records(self) -> dict[str, TrialRecord]:
        """What is known, by trial."""
        return {name: record_of(row) for name, row in self._rows.items()}

    def append(self, record: TrialRecord) -> None:
        """Keep what is known of a trial. Safe once this returns."""
        row = _row(record, self._shard_bytes, self._next)
        _write(self._parts / f"trials-{self._next:08}.parquet", [row])
        self._rows[record.name] = row
        self._next += 1

    def close(self) -> None:
        """Put all rows into one table, and let go of the sweep."""
        if self._rows:
            parts = list(self._parts.glob("trials-*.parquet"))
            _write(self._out / TRIALS_NAME, self._rows.values())
            for part in parts:
                part.unlink()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """The newest row of every trial, by name, in the order in which they were first known.

    Raises:
        SourceError: A table cannot be read.
    """
    from pyarrow import ArrowInvalid, parquet

    found: dict[str, dict[str, Any]] = {}
    for path in [out / TRIALS_NAME, *sorted((out / PARTS_NAME).glob("trials-*.parquet"))]:
        try:
            rows = parquet.ParquetFile(path).read().to_pylist()
        except FileNotFoundError:
            continue
        except (ArrowInvalid, OSError) as error:
            raise SourceError(f"{path} cannot be read: {error}", file=str(path)) from error
        for row in rows:
            known = found.get(row["name"])
            if known is None or known["sequence"] < row["sequence"]:
                found[row["name"]] = row
    return found


def record_of(row: Mapping[str, Any]) -> TrialRecord:
    """What a row says."""
    return TrialRecord(
        name=row["name"],
        digest=row["digest"],
        values=json.loads(row["values"]),
        seed=int(row["seed"]),
        text=row["recipe"],
        out=row["out"],
        state=row["state"],
        error=row["error"],
        seconds=row["seconds"],
        bytes_read=row["bytes_read"],
        bytes_written=row["bytes_written"],
        evaluations=(),
        missed=tuple(row["missed"]),
        score=row["score"],
    )


def _row(record: TrialRecord, shard_bytes: int | None, sequence: int) -> dict[str, Any]:
    return {
        "name": record.name,
        "digest": record.digest,
        "values": json.dumps(dict(record.values)),
        "seed": record.seed,
        "recipe": record.text,
        "shard_bytes": shard_bytes,
        "out": record.out,
        "state": record.state,
        "error": record.error,
        "seconds": record.seconds,
        "bytes_read": record.bytes_read,
        "bytes_written": record.bytes_written,
        "score": record.score,
        "missed": list(record.missed),
        "sequence": sequence,
    }


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table, whole or not at all, and on the disk when this returns."""
    import pyarrow as pa
    from pyarrow import parquet

    text, number, figure = pa.string(), pa.int64(), pa.float64()
    kinds = {
        "name": text, "digest": text, "values": text, "seed": pa.uint64(), "recipe": text,
        "shard_bytes": number, "out": text, "state": text, "error": text, "seconds": figure,
        "bytes_read": number, "bytes_written": number, "score": figure,
        "missed": pa.list_(text), "sequence": number,
    }  # fmt: skip
    listed = list(rows)
    columns = [pa.array([row[key] for row in listed], kind) for key, kind in kinds.items()]
    table = pa.Table.from_arrays(columns, schema=pa.schema(kinds))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            parquet.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
