"""What a command took, the floor it is held against, and how to empty the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SAMPLE_S = 0.05
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished command, its children included."""

    exit_code: int
    wall_s: float
    cpu_s: float
    """User and system time."""
    anon_bytes: int
    """Peak anonymous memory by sampling: a peak shorter than 20 ms may be missed."""
    resident_bytes: int
    """Peak resident memory by the kernel's own mark (VmHWM), file pages included: never too low."""
    complaint: str
    """Last lines of stderr."""

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.exit_code == 0


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, measured as a whole process from fork to wait."""
    with tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - the commands are the suite's own
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(env or {})},
        )
        _die_first(process.pid)
        with MemorySampler(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        complaint = stderr.read().decode(errors="replace")[-2000:]
    return Run(
        exit_code=process.returncode,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        anon_bytes=memory.anon_bytes,
        resident_bytes=memory.resident_bytes,
        complaint=complaint.strip(),
    )


def _die_first(pid: int) -> None:
    """If memory runs out, the kernel is to take the benchmark and nobody else's process."""
    with suppress(OSError):  # a container may forbid it, and nothing measured depends on it
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


class MemorySampler:
    """Peak memory of a process and all its descendants, read every 20 ms while it is open.

    Anonymous memory is RssAnon plus VmSwap, summed over the processes alive at one moment: page
    cache, mapped sources and files in /dev/shm are in neither. (The rusage of a child would not do:
    its peak counts file pages, and starts at what its parent held at the fork.)
    """

    def __init__(self, pid: int) -> None:
        self.anon_bytes = 0
        self.resident_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            marks = [_memory(pid) for pid in _family(self._pid)]
            self.anon_bytes = max(self.anon_bytes, sum(anon for anon, _ in marks))
            self.resident_bytes = max(self.resident_bytes, sum(resident for _, resident in marks))


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants, as far as they are still alive."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield from _family(int(child))


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous bytes now, and the most ever resident; zeros once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    anon, swap, resident = (
        int(fields.get(key, "0").split()[0]) * 1024 for key in ("RssAnon", "VmSwap", "VmHWM")
    )
    return anon + swap, resident


def cat(paths: Sequence[Path]) -> float:
    """Seconds `cat` takes to read files and throw the bytes away."""
    return run(["cat", *paths]).wall_s


def write(path: Path, size_bytes: int, *, keep: bool = False) -> float:
    """Seconds to write a file of this size in blocks of 1 MiB and fsync it. Then it is removed.

    raymerge fsyncs every shard before it says that the shard is there; so does this.
    """
    block = os.urandom(BLOCK_BYTES)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for first in range(0, size_bytes, BLOCK_BYTES):
            file.write(block[: size_bytes - first])
        os.fsync(file.fileno())
    wall_s = time.perf_counter() - started
    if not keep:
        path.unlink()
    return wall_s


def drop_from_cache(paths: Sequence[Path]) -> float:
    """Ask the kernel to forget the pages of files; say which share of them it still holds.

    Written data are fsynced first, as a dirty page cannot be dropped. The share comes from mincore;
    on tmpfs it stays 1, as there is nothing underneath to read again.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_share(paths)


def resident_share(paths: Sequence[Path]) -> float:
    """Share of the pages of files that the page cache holds, by mincore."""
    counts = [_resident_pages(path) for path in paths]
    return sum(resident for resident, _ in counts) / sum(pages for _, pages in counts)


def _resident_pages(path: Path) -> tuple[int, int]:
    """Pages of one file in the cache, and all its pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    num_pages = -(-path.stat().st_size // mmap.PAGESIZE)
    in_core = (ctypes.c_ubyte * num_pages)()
    # A private mapping that is never written: ctypes takes no address of a read-only one.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        first = ctypes.c_ubyte.from_buffer(view)
        length = ctypes.c_size_t(len(view))
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), length, in_core):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
        del first
    return sum(byte & 1 for byte in bytes(in_core)), num_pages
