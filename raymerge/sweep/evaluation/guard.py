"""End evaluators whose driver is gone: a process of its own, which outlives it.

    driver --pipe--> guard       +PID  a process group runs
                                 -PID  it has ended
    the pipe closes: the driver has ended, however, and with it whatever is left of these groups

It is run as a file, so it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from threading import Lock

GRACE_S = 2.0
"""From the request to end until a group is killed."""


class Guard:
    """Tells the guard of this process what runs. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pipe: int | None = None
        self._groups: set[int] = set()
        """What runs, for a guard that comes after another."""

    def start(self) -> None:
        """Have a guard, so that it is there before what it is told of.

        Raises:
            OSError: It cannot be started.
        """
        with self._lock:
            if self._pipe is None:
                self._pipe = _spawn()
                self._tell("".join(f"+{group}\n" for group in self._groups))

    def watch(self, group: int) -> None:
        """A process group runs."""
        with self._lock:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """It has ended."""
        with self._lock:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def _tell(self, lines: str) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, lines.encode())
        except BrokenPipeError:  # somebody has ended it: the next program gets another
            os.close(self._pipe)
            self._pipe = None


def _spawn() -> int:
    """Start a guard; its pipe."""
    ours, pipe = os.pipe()
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", __file__],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, ours, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
    finally:
        os.close(ours)
    return pipe


def main() -> None:
    """Wait until the driver is gone, then end what it has left."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    deadline = time.monotonic() + GRACE_S
    _send(groups, signal.SIGTERM)
    while _send(groups, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    _send(groups, signal.SIGKILL)


def _send(groups: set[int], number: int) -> bool:
    """Send a signal, or 0 to look; whether there was anything to send it to."""
    found = False
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            found = True
    return found


if __name__ == "__main__":
    main()
