"""The sweep's ledger: a row per trial and a row per evaluation, in two Parquet tables.

While a sweep runs, what becomes known is a small file of its own in OUT/.raymerge-sweep, written
beside and renamed: a kill leaves it whole or absent, and no row is ever written twice. When the
sweep ends the rows are put together in one file a table, and the small files go.

OUT/raymerge-trials.parquet, the newest row of every trial
  name, digest         of the trial and of its plan
  values               JSON, by axis
  seed, recipe         the YAML that makes this trial alone
  shard_bytes          what --shard-size said; null where it was chosen
  out, state, error    see `TrialRecord`
  sources              JSON, what each source was by its location
  seconds, bytes_read, bytes_written, score, missed, rank
  sequence             rising from row to row; of two rows of a trial the later one counts

OUT/raymerge-evaluations.parquet, every evaluation that was made
  trial, split, subset, error, seconds, worker    see `Evaluated`
  digest               of the trial's plan; of a source its location and what its files are
  scores               JSON, by task
  evaluator            digest of what the sweep block said of the evaluator, and of its files
  files                JSON, the sha256 of each of these files
  sequence             rising from row to row; of two rows of one evaluation the later one counts
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any, Self

from raymerge.errors import ConflictError, StorageError
from raymerge.storage.posix import is_locked, write_atomically
from raymerge.sweep.evaluation.fingerprint import NOTHING, Fingerprint
from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.tables import EVALUATIONS, PARTS_NAME, TRIALS, Row, remove_drafts

_LOCK_NAME = "lock"
_ASKED_NAME = "asked.json"
_ATTEMPTS, _ATTEMPT_S = 5, 0.02


class Ledger:
    """The rows of a sweep, held by one process at a time. Safe to use from any thread.

    Args:
        out: Folder of the sweep.
        shard_bytes: Limit of an output shard that the trials are merged with.
        evaluator: What evaluates; evaluations by another one count as not made.
        anew: Rows of earlier runs count as not there.

    Raises:
        ConflictError: Another process runs this sweep.
        StorageError: The folder cannot be written.
    """

    def __init__(
        self,
        out: Path,
        *,
        shard_bytes: int | None,
        evaluator: Fingerprint = NOTHING,
        anew: bool = False,
    ) -> None:
        self._out = out
        self._shard_bytes = shard_bytes
        self.evaluator = evaluator
        self._lock = _lock(out)
        remove_drafts(out)
        self._writing = Lock()
        self._rows = read_rows(out)
        self._evaluations = _read_evaluations(out)
        self._next = 1 + max((row["sequence"] for row in self._rows.values()), default=0)
        self._next_evaluation = 1 + max(self._evaluations, default=0)
        self.others_files = None if anew else self._files_of_another()
        """Of the evaluator that made the last evaluations, if that is another one."""
        self._first = self._next if anew else 0
        self._newest: dict[tuple[str, str], dict[tuple[str, int | None], Row]] = {}
        for row in self._evaluations.values():
            if row["evaluator"] == evaluator.digest and not anew:
                self._count(row)

    def records(self) -> dict[str, TrialRecord]:
        """What is known, by trial."""
        return {
            name: record_of(row, self._of(name, row["digest"]))
            for name, row in self._rows.items()
            if row["sequence"] >= self._first
        }

    def record(self, name: str) -> TrialRecord | None:
        """What is known of a trial; None if nothing is."""
        row = self._rows.get(name)
        if row is None or row["sequence"] < self._first:
            return None
        return record_of(row, self._of(name, row["digest"]))

    def shard_bytes(self, name: str) -> int | None:
        """Limit of an output shard that a trial was merged with; None where it was chosen."""
        limit: int | None = self._rows[name]["shard_bytes"]
        return limit

    def append(self, *records: TrialRecord) -> None:
        """Keep what is known of trials, but for their evaluations. Safe once this returns."""
        if not records:
            return
        with self._writing:
            rows = [
                _row(record, self._limit_of(record), sequence)
                for sequence, record in enumerate(records, start=self._next)
            ]
            TRIALS.append(self._out, rows, self._next)
            self._next += len(rows)
            self._rows |= {row["name"]: row for row in rows}

    def ask(self, names: Iterable[str]) -> None:
        """Note which trials there are to be so far, for whoever asks how far the sweep is."""
        write_atomically(self._out / PARTS_NAME / _ASKED_NAME, json.dumps(list(names)).encode())

    def newest_digest(self, name: str) -> str | None:
        """Of what this evaluator evaluated last under a name."""
        return next((digest for known, digest in reversed(self._newest) if known == name), None)

    def evaluations(self, name: str, digest: str) -> tuple[Evaluated, ...]:
        """The newest evaluation of each split and subset, by this evaluator.

        Args:
            name: Of the trial, or `source:` and a source's label.
            digest: Of the trial's plan; of a source its location and what its files are.
        """
        return tuple(map(_evaluated, self._of(name, digest)))

    def add(self, evaluated: Evaluated, digest: str) -> None:
        """Keep an evaluation. Safe once this returns.

        Args:
            evaluated: What came of it.
            digest: Of the trial's plan; of a source its location and what its files are.
        """
        with self._writing:
            row = {
                "trial": evaluated.trial,
                "digest": digest,
                "split": evaluated.split,
                "subset": evaluated.subset,
                "scores": json.dumps(dict(evaluated.scores)),
                "error": evaluated.error,
                "seconds": evaluated.seconds,
                "worker": evaluated.worker,
                "evaluator": self.evaluator.digest,
                "files": json.dumps(dict(self.evaluator.files)),
                "sequence": self._next_evaluation,
            }
            EVALUATIONS.append(self._out, [row], self._next_evaluation)
            self._evaluations[self._next_evaluation] = row
            self._next_evaluation += 1
            self._count(row)

    def close(self) -> None:
        """Put the rows of each table together, and let go of the sweep."""
        try:
            if self._rows:
                TRIALS.put_together(self._out, self._rows.values())
            if self._evaluations:
                EVALUATIONS.put_together(self._out, self._evaluations.values())
        finally:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _limit_of(self, record: TrialRecord) -> int | None:
        """Of its shards: what it was merged with, whatever this run would merge with."""
        row = self._rows.get(record.name)
        if row is None or not record.digest or row["digest"] != record.digest:
            return self._shard_bytes
        limit: int | None = row["shard_bytes"]
        return limit

    def _files_of_another(self) -> Mapping[str, str] | None:
        last = next(reversed(self._evaluations.values()), None)
        if last is None or last["evaluator"] == self.evaluator.digest:
            return None
        files: Mapping[str, str] = json.loads(last.get("files") or "{}")
        return files

    def _count(self, row: Row) -> None:
        known = self._newest.setdefault((row["trial"], row["digest"]), {})
        # Those made again come last, as they do when they are read.
        known.pop((row["split"], row["subset"]), None)
        known[row["split"], row["subset"]] = row

    def _of(self, name: str, digest: str) -> list[Row]:
        return list(self._newest.get((name, digest), {}).values())


def read_rows(out: Path) -> dict[str, Row]:
    """The newest row of every trial, by name, in the order in which they were first known.

    Raises:
        SourceError: A table cannot be read.
    """
    found: dict[str, Row] = {}
    for row in TRIALS.read(out):
        known = found.get(row["name"])
        if known is None or known["sequence"] < row["sequence"]:
            found[row["name"]] = row
    return found


def read_records(out: Path) -> list[TrialRecord]:
    """What the ledger says of every trial, each with its newest evaluations.

    Raises:
        SourceError: A table cannot be read.
    """
    rows = read_rows(out)
    newest: dict[str, dict[tuple[str, int | None], Row]] = {name: {} for name in rows}
    for row in _read_evaluations(out).values():
        trial = rows.get(row["trial"])
        if trial is not None and trial["digest"] == row["digest"]:
            newest[row["trial"]][row["split"], row["subset"]] = row
    return [record_of(row, newest[name].values()) for name, row in rows.items()]


def is_running(out: Path) -> bool:
    """Whether a process has the sweep of a folder."""
    return is_locked(out / PARTS_NAME / _LOCK_NAME)


def read_asked(out: Path) -> list[str]:
    """Names of the trials that there are to be, as far as that was noted."""
    try:
        names: list[str] = json.loads((out / PARTS_NAME / _ASKED_NAME).read_bytes())
    except (OSError, ValueError):
        return []
    return names


def _read_evaluations(out: Path) -> dict[int, Row]:
    found = {row["sequence"]: row for row in EVALUATIONS.read(out)}
    return dict(sorted(found.items()))


def _lock(out: Path) -> int:
    """Hold the sweep until the descriptor is closed, however this process ends."""
    try:
        (out / PARTS_NAME).mkdir(parents=True, exist_ok=True)
        lock = os.open(out / PARTS_NAME / _LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from error
    for left in reversed(range(_ATTEMPTS)):  # `--status` holds it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not left:
                os.close(lock)
                raise ConflictError(
                    f"{out}: another process runs this sweep; wait for it"
                ) from error
            sleep(_ATTEMPT_S)
        else:
            break
    return lock


def record_of(row: Mapping[str, Any], evaluations: Iterable[Row] = ()) -> TrialRecord:
    """What a row says, with the evaluations of that trial."""
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
        evaluations=tuple(map(_evaluated, evaluations)),
        missed=tuple(row["missed"]),
        score=row["score"],
        sources=json.loads(row.get("sources") or "{}"),
        rank=row.get("rank"),
    )


def _evaluated(row: Row) -> Evaluated:
    return Evaluated(
        trial=row["trial"],
        split=row["split"],
        subset=row["subset"],
        scores=json.loads(row["scores"]),
        error=row["error"],
        seconds=row["seconds"],
        worker=row["worker"],
    )


def _row(record: TrialRecord, shard_bytes: int | None, sequence: int) -> Row:
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
        "sources": json.dumps(dict(record.sources)),
        "rank": record.rank,
        "sequence": sequence,
    }
