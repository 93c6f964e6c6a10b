"""Where the checkpoints of a sweep lie, and which of them are its own to remove.

Candidates lie at their `out`, or in the scratch folder until they are kept. What the sweep may
remove is written down before it is made, in OUT/.raymerge-sweep/made.json: a place is the sweep's
own if there was nothing when the sweep first came to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME
from raymerge.errors import ConflictError, PlanError, StorageError
from raymerge.runtime.adopting import adopt
from raymerge.runtime.destination import finished
from raymerge.storage import Scheme, destination, local_folder
from raymerge.storage.posix import write_atomically
from raymerge.storage.store import Access
from raymerge.sweep.tables import PARTS_NAME
from raymerge.sweep.trial import Trial


class Places:
    """Where trials are merged, found, kept and removed.

    Args:
        out: Folder of the sweep.
        scratch: Folder of candidates; None for each trial's own place.
        access: How storage is reached.
        overwrite: Whether what a kept trial's place holds may be replaced.
    """

    def __init__(self, out: Path, *, scratch: str | None, access: Access, overwrite: bool) -> None:
        self._scratch = None if scratch is None else local_folder(scratch).resolve()
        self._access = access
        self._overwrite = overwrite
        self._list = out / PARTS_NAME / "made.json"
        self._held: int | None = None
        """Descriptor of scratch, which no other sweep gets while this process has it."""
        self._made: set[str] = set()
        with suppress(FileNotFoundError):
            self._made = set(json.loads(self._list.read_bytes()))

    def check(self, trials: Iterable[Trial], *, keep: bool) -> None:
        """Raise PlanError for a trial that could not be removed where it is merged, or kept.

        Args:
            trials: Before they are merged.
            keep: Whether some are going to be removed.
        """
        for trial in trials:
            if self._scratch is not None and _local(trial.out) == self._scratch / trial.name:
                raise PlanError(
                    f"scratch: {self._scratch} is where {trial.name} goes, and scratch is cleared "
                    "in the end; give another folder, or leave scratch out"
                )
            if self._scratch is not None and not self._overwrite:
                self._check_free(self._scratch / trial.name)
            if not keep or self._scratch is not None:
                continue
            if destination(trial.out).scheme is not Scheme.FILE:
                raise PlanError(
                    f"{trial.name} goes to {trial.out}, and keep removes checkpoints from folders "
                    "of this machine only; add scratch: and a folder, from where the kept go there"
                )

    def _check_free(self, place: Path) -> None:
        if str(place) not in self._made and not _is_empty(place):
            raise PlanError(
                f"scratch: {place} is there already, and not of this sweep: another one's, or left "
                "by one whose OUT is gone. Give each sweep a scratch of its own, or remove it"
            )

    def candidate(self, trial: Trial) -> str:
        """Where a trial is merged."""
        return trial.out if self._scratch is None else str(self._scratch / trial.name)

    def begin(self, places: Iterable[str]) -> None:
        """Before anything is written there: note what is going to be the sweep's own.

        Raises:
            ConflictError: Another sweep that runs has its candidates in the same scratch.
            StorageError: Scratch cannot be written.
        """
        if self._scratch is not None and self._held is None:
            self._held = _hold(self._scratch)
        local = filter(None, map(_local, places))
        self._note({str(path) for path in local if _is_empty(path)})

    def find(self, trial: Trial, digest: str) -> str | None:
        """Where the whole checkpoint of a trial is; None where it is not."""
        # Both are there where a run was killed that had brought one to its own place.
        for place in dict.fromkeys((trial.out, self.candidate(trial))):
            if finished(place, digest, access=self._access) is not None:
                return place
        return None

    def settle(self, trial: Trial, digest: str) -> bool:
        """Bring a trial from scratch to its own place; whether it is there now.

        Raises:
            ConflictError: Its place holds something else.
            StorageError: It cannot be written.
        """
        found, own = self.find(trial, digest), _local(trial.out)
        if found is None or found == trial.out:
            return found is not None
        if own is None:
            return False
        self.begin([trial.out])
        overwrite = self._overwrite or self.is_damaged(trial.out, digest)
        adopt(Path(found), own, digest=digest, overwrite=overwrite)
        return True

    def is_damaged(self, at: str, digest: str) -> bool:
        """Whether a place has the checkpoint of a plan, and not all of it any more.

        Only what the sweep has made is one, and what says that it is of this very plan.
        """
        own = _local(at)
        if own is None or str(own) not in self._made or not _says(own, digest):
            return False
        return finished(at, digest, access=self._access) is None

    def is_own(self, trial: Trial, digest: str) -> bool:
        """Whether the checkpoint of a trial, if there is one, is the sweep's own."""
        found = self.find(trial, digest)
        return found is None or str(_local(found)) in self._made

    def remove(self, trials: Iterable[Trial]) -> None:
        """Remove the checkpoints of trials, wherever they are the sweep's own."""
        for trial in trials:
            self._remove({self.candidate(trial), trial.out})

    def clean(self) -> None:
        """Leave nothing of the sweep in scratch."""
        if self._scratch is None:
            return
        self._remove(place for place in self._made.copy() if Path(place).parent == self._scratch)
        with suppress(OSError):  # somebody else's things are in it, or it is not there
            self._scratch.rmdir()

    def close(self) -> None:
        """Let others have scratch."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _remove(self, places: Iterable[str]) -> None:
        own = {str(path) for path in map(_local, places) if path} & self._made
        for place in sorted(own):
            _remove_checkpoint(Path(place))
        if own:
            self._made -= own
            self._write()

    def _note(self, places: set[str]) -> None:
        if not places <= self._made:
            self._made |= places
            self._write()

    def _write(self) -> None:
        write_atomically(self._list, json.dumps(sorted(self._made)).encode())


def _hold(scratch: Path) -> int:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"scratch: {scratch} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConflictError(
            f"scratch: another sweep that runs has its candidates in {scratch}; give this one a "
            "scratch of its own"
        ) from error
    return descriptor


def _local(place: str) -> Path | None:
    where = destination(place)
    return Path(where.path).resolve() if where.scheme is Scheme.FILE else None


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _says(folder: Path, digest: str) -> bool:
    """Whether the record of a checkpoint names a plan."""
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("digest") == digest


def _remove_checkpoint(folder: Path) -> None:
    """The index first: no reader finds a checkpoint that is half gone."""
    try:
        (folder / INDEX_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder} cannot be removed: {error.strerror}") from error
