"""What ends evaluators that outlive their driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from raymerge.sweep.evaluation.guard import Guard

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def guards() -> set[int]:
    """Process ids of the guards that this process has started."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"evaluation/guard.py" in command:
            found.add(int(place.name))
    return found


def new_guard(before: set[int]) -> int:
    """The one that is not among those before: a process has no command line as it begins."""
    deadline = time.monotonic() + 10
    while not (found := guards() - before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [guard] = found
    return guard


def test_a_guard_after_another_knows_what_runs_already() -> None:
    before = guards()
    guard = Guard()
    guard.start()
    first = new_guard(before)
    running = subprocess.Popen(SLEEP, start_new_session=True)
    over = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        guard.watch(running.pid)
        guard.watch(over.pid)
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        guard.release(over.pid)
        guard.start()
        second = new_guard(before)
        pipe = guard._pipe  # noqa: SLF001 - which the end of the driver closes
        assert pipe is not None
        os.close(pipe)
        assert running.wait(10) == -signal.SIGTERM
        os.waitpid(second, 0)
        assert over.poll() is None
    finally:
        for one in (running, over):
            one.kill()
            one.wait()
