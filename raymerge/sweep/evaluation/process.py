"""A program under a time limit: what it printed, how it ended, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic
from typing import IO

from raymerge.sweep.evaluation.guard import GRACE_S, Guard

STDOUT_BYTES = 1 << 20
"""How much of the end of stdout is kept: an evaluator may print for hours before its scores."""
STDERR_BYTES = 2000
"""How much of the end of stderr goes into the record of a failure."""
_READ_BYTES = 1 << 16
_LOOK_S = 0.2
_GUARD = Guard()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended."""

    pid: int
    stdout: bytes
    """The end of what it printed."""
    stderr: str
    """Likewise."""
    code: int
    """Its exit status; of a signal, less than 0."""
    ended_by: str | None
    """`limit` or `stop` where it was not left to end by itself."""


def run(
    arguments: Sequence[str],
    *,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    stop: Event | None = None,
) -> Ran:
    """Run a program to its end, or to the limit; its whole process group ends with it.

    And with this process, however that ends.

    Args:
        arguments: The program and its arguments. No shell reads them.
        limit_s: Seconds after which it is ended.
        environment: Variables besides those of this process.
        folder: That it runs in; None for that of this process.
        stop: Ends it early once set.

    Raises:
        OSError: It cannot be started.
    """
    _GUARD.start()
    process = subprocess.Popen(  # noqa: S603 - the sweep's own command
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        start_new_session=True,
    )
    _GUARD.watch(process.pid)
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = _Tail(process.stdout, STDOUT_BYTES), _Tail(process.stderr, STDERR_BYTES)
    try:
        ended_by = _wait(process, monotonic() + limit_s, stop or Event())
    finally:
        # Also what it left running in its group: that may hold memory, a GPU, and our pipes.
        _end_group(process, gently=process.returncode is None)
        _GUARD.release(process.pid)
        stdout, stderr = (output.close() for output in outputs)
    return Ran(
        pid=process.pid,
        stdout=stdout,
        stderr=stderr.decode(errors="replace").strip(),
        code=process.returncode,
        ended_by=ended_by,
    )


def _wait(process: subprocess.Popen[bytes], deadline: float, stop: Event) -> str | None:
    while True:
        if stop.is_set():
            return "stop"
        left = deadline - monotonic()
        if left <= 0:
            return "limit"
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left, _LOOK_S))
            return None


def _end_group(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    # The group has the number of its first process, and lives while any of it does.
    with suppress(ProcessLookupError, PermissionError):
        if gently:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Tail:
    """Reads a pipe to its end, so that nobody waits on it, and keeps the last bytes."""

    def __init__(self, pipe: IO[bytes], limit_bytes: int) -> None:
        self._pipe = pipe
        self._limit_bytes = limit_bytes
        self._kept = b""
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # Closed under us where something outside of the group keeps the pipe open.
        with suppress(OSError, ValueError):
            while more := os.read(self._pipe.fileno(), _READ_BYTES):
                self._kept = (self._kept + more)[-self._limit_bytes :]

    def close(self) -> bytes:
        """What was kept."""
        self._thread.join(GRACE_S)
        if not self._thread.is_alive():
            self._pipe.close()
        return self._kept
