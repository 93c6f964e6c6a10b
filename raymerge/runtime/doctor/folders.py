"""Try to write to a folder: a file, whole and synced, and what a claim on it needs."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymerge.checkpoint.index import INDEX_NAME
from raymerge.errors import StorageError
from raymerge.runtime.doctor.report import TRIAL_BYTES, Visit
from raymerge.runtime.doctor.sources import user
from raymerge.storage.mounts import free_bytes, mount_type, shares_files
from raymerge.storage.posix import PosixFolder, write_atomically
from raymerge.units import format_bytes

_UNSEEN = "two merges into it would not see each other"


def try_folder(visit: Visit, folder: Path) -> None:
    """Write, read back and remove a megabyte; folders that were not there are gone again.

    Raises:
        StorageError: It cannot be written.
        OSError: Likewise.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; give a folder, or a path where there is nothing")
    visit.facts["identity"] = user()
    visit.facts["file system"] = mount_type(folder) or "unknown"
    visit.facts["free"] = format_bytes(free_bytes(folder))
    if not shares_files(folder):
        visit.note("this file system is not known to share files: a unit is a whole shard")
    if (folder / INDEX_NAME).exists():
        visit.note("it holds a checkpoint: a merge into it needs --overwrite")
    path = folder / f".raymerge-doctor-{secrets.token_hex(8)}"
    data = secrets.token_bytes(TRIAL_BYTES)
    with _there(folder):
        visit.litter = str(path)
        try:
            visit.measure_latency(lambda: _make_and_remove(path))
            visit.measure_writing(len(data), lambda: write_atomically(path, data))
            _read_back(visit, path, data)
            _check_claims(visit, path)
        finally:
            path.unlink(missing_ok=True)
            visit.litter = None


def _make_and_remove(path: Path) -> None:
    path.touch(exist_ok=False)
    path.unlink()


@contextmanager
def _there(folder: Path) -> Iterator[None]:
    """The folder, made for a while if it is not there."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in absent:
            each.rmdir()


def _read_back(visit: Visit, path: Path, data: bytes) -> None:
    found: list[bytes] = []
    read = PosixFolder(path.parent).read
    visit.measure_reading(len(data), lambda: found.append(read(path.name, 0, len(data))))
    if found != [data]:
        visit.problem(f"{path} does not hold what was written to it; do not use this file system")


def _check_claims(visit: Visit, path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        pass
    else:
        visit.problem(
            f"{path.parent} lets a file be created that is there (O_EXCL): {_UNSEEN}; give another "
            "file system"
        )
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        visit.problem(
            f"{path.parent} has no locks ({error.strerror}): {_UNSEEN}; mount it with locks, or "
            "give another file system"
        )
    finally:
        os.close(descriptor)
