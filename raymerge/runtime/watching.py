"""Hand a run's events to whoever listens: callers, `--events`, `--trace`, counters of Ray's."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock
from time import perf_counter

from raymerge.errors import PlanError
from raymerge.plan.build import Plan
from raymerge.runtime.events import Event, OnEvent, Planned, RunEnded, RunStarted
from raymerge.runtime.record import raymerge_version
from raymerge.runtime.trace import trace

_log = logging.getLogger(__name__)


def this_process() -> str:
    """Host and process, as receipts have them."""
    return f"{socket.gethostname()}:{os.getpid()}"


def planned_event(plan: Plan, engine: str, device: str) -> Planned:
    """What a plan comes to."""
    return Planned(
        digest=plan.digest,
        tensors=len(plan.nodes),
        units=len(plan.units),
        shards=len(plan.shards),
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        engine=engine,
        device=device,
    )


@contextmanager
def watched(
    output: str,
    listeners: Sequence[OnEvent],
    *,
    events_path: str | None,
    trace_path: str | None,
) -> Iterator[OnEvent]:
    """A run, from its first event to its last; gives what its parts tell their own to.

    Args:
        output: Where the run writes.
        listeners: Told of every event, one at a time.
        events_path: File that gets a line of JSON per event, behind whatever it holds.
        trace_path: File that the run's trace replaces, once the run has ended in any way but a
            kill.

    Raises:
        PlanError: A file cannot be written; nothing has happened yet.
    """
    began, lock = perf_counter(), RLock()
    with ExitStack() as stack:
        everybody = list(listeners)
        if events_path is not None:
            everybody.append(stack.enter_context(_logged(events_path)))
        if trace_path is not None:
            everybody.append(stack.enter_context(_traced(trace_path)))

        def tell(event: Event) -> None:
            with lock:
                for listener in everybody:
                    listener(event)

        tell(RunStarted(output=output, version=raymerge_version(), driver=this_process()))
        error: str | None = None
        try:
            yield tell
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            seconds = round(perf_counter() - began, 6)
            tell(RunEnded(ok=error is None, error=error, seconds=seconds))


@contextmanager
def _logged(path: str) -> Iterator[OnEvent]:
    """Append events to a file, each with one write, so that a kill leaves whole lines."""
    broken = False
    try:
        # Read as well: a line that a full disk has cut is to be ended first.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise _unwritable("--events", path, error) from error
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"

    def write(event: Event) -> None:
        nonlocal broken, torn
        line = f"{json.dumps(event.as_json())}\n".encode()
        if broken:
            return
        try:
            line = b"\n" + line if torn else line
            # The rest of what a disk takes in part is ended before the next.
            torn = os.write(file, line) < len(line)
        except OSError as error:
            # A merge of hours is not ended for its log.
            broken = True
            _log.warning("no more events are written to %s: %s", path, error)

    try:
        yield write
    finally:
        os.close(file)


@contextmanager
def _traced(path: str) -> Iterator[OnEvent]:
    """Keep events, and write their trace at the end."""
    kept: list[Event] = []
    try:
        Path(path).write_text("", "utf-8")
    except OSError as error:
        raise _unwritable("--trace", path, error) from error
    try:
        yield kept.append
    finally:
        try:
            Path(path).write_text(json.dumps(trace(kept)), "utf-8")
        except OSError as error:
            _log.warning("the trace could not be written to %s: %s", path, error)


def _unwritable(flag: str, path: str, error: OSError) -> PlanError:
    return PlanError(
        f"{flag} {path} cannot be written: {error.strerror or error}. Give a file in a folder of "
        "this machine that exists."
    )
