"""Files: ranged reads of sources, and output shards that several writers fill at planned offsets.

Reads are `preadv` into buffers the caller reuses, never a memory map: a map of a file that is cut
short while it is read kills the process with SIGBUS, where a short read is an error with a name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Self

from raymerge.checkpoint.folder import Folder, Pin
from raymerge.errors import SourceError, StorageError
from raymerge.storage.mounts import free_bytes, shares_files

# What another worker, or a second try, may not meet again.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})
READ_AHEAD_BYTES = 2**17
"""Linux' default window; a longer request is cut to it."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class PosixFolder(Folder):
    """A local folder, or a single .safetensors file seen as a folder that holds it alone."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser()
        if not self._path.exists():
            why = (
                "does not exist; give a folder with a checkpoint or a .safetensors file, or "
                "hf://org/name for a repository of the Hub"
            )
            raise SourceError(f"{self._path} {why}", source=str(self._path))
        self._only = self._path.name if self._path.is_file() else None
        self._root = self._path.parent if self._only else self._path

    @property
    def location(self) -> str:
        """The path, as given."""
        return str(self._path)

    def path(self, name: str) -> Path:
        """Where a file of this folder lies."""
        return self._root / name

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file directly in the folder; links count as what they point to."""
        if self._only:
            return {self._only: self.pin(self._only).size_bytes}
        try:
            with os.scandir(self._root) as children:
                return {child.name: child.stat().st_size for child in children if child.is_file()}
        except OSError as error:
            self._refuse(error, "")

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes `[start, stop)` of a file."""
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = _read(descriptor, start, stop)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._refuse(error, name)
        if len(content) < stop - start:
            raise _cut_short(self.location, name, start, stop, start + len(content))
        return content

    def pin(self, name: str) -> Pin:
        """Size, modification time and inode of a file."""
        try:
            return _pin(self.path(name).stat())
        except OSError as error:
            self._refuse(error, name)

    def _refuse(self, error: OSError, name: str) -> NoReturn:
        raise _unreadable(error, self.location, self.path(name), name or None) from error


class PosixReader:
    """A source file opened for the data path. Safe to share between threads.

    Args:
        path: The file.
        pin: Its identity when the merge was planned.
        source: Label of the source, for messages.

    Raises:
        SourceError: The file is gone or is not the planned one any more.
    """

    def __init__(self, path: str | os.PathLike[str], pin: Pin, *, source: str) -> None:
        self._path = Path(path)
        self._pin = pin
        self._source = source
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(error, source, self._path, self._path.name) from error
        try:
            self.check_unchanged()
        except SourceError:
            self.close()
            raise

    def check_unchanged(self) -> None:
        """Raise unless the open file still has the planned size, modification time and inode."""
        found = _pin(os.fstat(self._descriptor))
        if found != self._pin:
            raise SourceError(
                f"{self._source}: {self._path} changed since it was planned: "
                f"{found.size_bytes} bytes ({found.tag}), expected {self._pin.size_bytes} "
                f"({self._pin.tag}). Plan again.",
                source=self._source,
                file=self._path.name,
            )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from `offset` of the file on."""
        try:
            num_read = _fill(self._descriptor, buffer, offset)
        except OSError as error:
            raise _unreadable(error, self._source, self._path, self._path.name) from error
        if num_read < buffer.nbytes:
            stop = offset + buffer.nbytes
            raise _cut_short(self._source, self._path.name, offset, stop, offset + num_read)

    def will_need(self, offset: int, length: int) -> None:
        """Ask the kernel to read ahead. Advice: where it cannot be given nothing happens."""
        if not hasattr(os, "posix_fadvise"):
            return
        # Linux fetches no more of one request than the device's read-ahead window.
        for start in range(offset, offset + length, READ_AHEAD_BYTES):
            step = min(READ_AHEAD_BYTES, offset + length - start)
            os.posix_fadvise(self._descriptor, start, step, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class PosixShard:
    """An output shard at its full planned length, open for writing at planned offsets.

    Any number of threads and processes may open and fill one shard: the first allocates it, under a
    lock, and nothing already written is touched.

    Args:
        path: The file; missing folders above it are made.
        nbytes: Planned length.

    Raises:
        StorageError: No space, no permission, or a file of another length is in the way.
    """

    def __init__(self, path: str | os.PathLike[str], nbytes: int) -> None:
        self._path = Path(path)
        self._nbytes = nbytes
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise _unwritable(error, self._path, nbytes) from error
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        # Where the kernel cannot allocate, the C library writes a zero into every block behind the
        # end without looking: beside another writer that destroys bytes, hence the lock.
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            found = os.fstat(self._descriptor).st_size
            if found < self._nbytes and shares_files(self._path):
                os.posix_fallocate(self._descriptor, 0, self._nbytes)
            elif found < self._nbytes:
                # Nobody else fills it, and the zeros would go over the network one by one.
                os.ftruncate(self._descriptor, self._nbytes)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise _unwritable(error, self._path, self._nbytes) from error
        if found > self._nbytes:
            why = f"has {found} bytes, planned are {self._nbytes}; it is not this merge's shard"
            raise StorageError(f"{self._path} {why}. Remove it.", file=self._path.name)

    def write_at(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset` of the file."""
        view = memoryview(data)
        assert offset + view.nbytes <= self._nbytes, (offset, view.nbytes, self._nbytes)
        written = 0
        try:
            written = os.pwrite(self._descriptor, view, offset)
            while written < view.nbytes:
                rest = view.cast("B")[written:]
                written += os.pwrite(self._descriptor, rest, offset + written)
        except OSError as error:
            raise _unwritable(error, self._path, view.nbytes - written) from error

    def read(self, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` as they are in the file now."""
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            raise _unwritable(error, self._path, 0) from error

    def sync(self) -> None:
        """Return once everything written is on the disk."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _unwritable(error, self._path, self._nbytes) from error

    def close(self) -> None:
        """Close the file; this does not sync."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file that is seen whole or not at all, also after a power cut."""
    target = Path(path)
    try:
        draft = _write_draft(target, data)
        draft.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(error, target, len(data)) from error


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether a process that lives holds the lock on a file; not where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def move(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file within its file system, in place of any `target`, also after a power cut."""
    try:
        Path(path).replace(target)
        _sync_folder(Path(target).parent)
    except OSError as error:
        raise _unwritable(error, Path(target), 0) from error


def _read(descriptor: int, start: int, stop: int) -> bytes:
    """The bytes of a range, fewer where the file ends."""
    content = os.pread(descriptor, stop - start, start)
    while len(content) < stop - start:
        # A single call gives 2 GiB at most, and less when a signal comes between.
        more = os.pread(descriptor, stop - start - len(content), start + len(content))
        if not more:
            break
        content += more
    return content


def _fill(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read until the buffer is full or the file ends; returns the bytes read."""
    done = os.preadv(descriptor, [buffer], offset)
    while done < buffer.nbytes:
        # A file system may hand over less than was asked for; only nothing at all is the end.
        num_read = os.preadv(descriptor, [buffer.cast("B")[done:]], offset + done)
        if num_read == 0:
            break
        done += num_read
    return done


def _pin(stat: os.stat_result) -> Pin:
    return Pin(stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ino}")


def _write_draft(target: Path, data: bytes | memoryview) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_short(source: str, file: str, start: int, stop: int, end: int) -> SourceError:
    return SourceError(
        f"{source}: {file} was cut short while it was read: bytes {start}-{stop} were asked for "
        f"and the file ends at {end}. Fetch it again.",
        source=source,
        file=file,
    )


def _unreadable(error: OSError, source: str, path: Path, file: str | None) -> SourceError:
    return SourceError(
        f"{source}: {path} cannot be read: {error.strerror}",
        source=source,
        file=file,
        retryable=error.errno in _PASSING,
    )


def _unwritable(error: OSError, path: Path, needed_bytes: int) -> StorageError:
    space = f"; {needed_bytes} bytes are needed there"
    if error.errno in _FULL:
        space += f" and {free_bytes(path)} are free"
    return StorageError(
        f"{path} cannot be written: {error.strerror}{space}",
        file=path.name,
        retryable=error.errno in _PASSING,
    )
