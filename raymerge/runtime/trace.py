"""A run's events as a trace that Perfetto and chrome://tracing open.

A process for the driver and for each node; a thread for each unit that a worker runs at once.
Phases and units are complete events (`X`), all else that happens is an instant (`i`). Times are
microseconds since the first event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raymerge.runtime.events import (
    Event,
    PhaseBegun,
    PhaseEnded,
    UnitBegun,
    UnitEnded,
    UnitEvent,
    UnitFailed,
    WorkerEvent,
)

DRIVER = 1
"""Its process in the trace; nodes follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """A unit on a worker from beginning to end."""

    begun: UnitBegun
    began_s: float
    stop_s: float
    args: dict[str, Any]


def trace(events: Sequence[Event]) -> dict[str, Any]:
    """The document of `--trace`.

    Args:
        events: Of one run, as the driver saw them. What has not ended, ends with the last one.
    """
    if not events:
        return {"traceEvents": [], "displayTimeUnit": "ms"}
    ordered = sorted(events, key=lambda event: event.time_s)
    start_s = ordered[0].time_s
    nodes = {e.node: None for e in ordered if isinstance(e, WorkerEvent)}
    pids = {node: DRIVER + number for number, node in enumerate(nodes, start=1)}
    rows = [_named("process_name", DRIVER, 0, "driver"), _named("thread_name", DRIVER, 0, "phases")]
    rows += _phases(ordered, start_s)
    rows += _nodes(pids, ordered)
    first_row = 0
    for worker, bars in _by_worker(_bars(ordered)).items():
        pid = pids[bars[0].begun.node]
        lanes = _lanes(bars)
        rows += [
            _named("thread_name", pid, first_row + lane, f"{worker} #{lane + 1}")
            for lane in range(max(lanes) + 1)
        ]
        rows += [
            _unit(bar, pid, first_row + lane, start_s)
            for bar, lane in zip(bars, lanes, strict=True)
        ]
        first_row += max(lanes) + 1
    rows += _instants(ordered, pids, start_s)
    return {"traceEvents": rows, "displayTimeUnit": "ms"}


def _nodes(pids: dict[str, int], events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    hosts = {e.node: e.worker.rpartition(":")[0] for e in events if isinstance(e, WorkerEvent)}
    for node, pid in pids.items():
        name = node if node == hosts[node] else f"{hosts[node]} ({node[:8]})"
        yield _named("process_name", pid, 0, name)


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _phases(events: Sequence[Event], start_s: float) -> Iterator[dict[str, Any]]:
    last_s = events[-1].time_s
    open_ = [event for event in events if isinstance(event, PhaseBegun)]
    ended = [event for event in events if isinstance(event, PhaseEnded)]
    for begun in open_:
        stop_s = next(
            (e.time_s for e in ended if e.phase == begun.phase and e.time_s >= begun.time_s), last_s
        )
        yield _complete(
            begun.phase,
            "driver",
            (DRIVER, 0),
            span_s=(begun.time_s, stop_s),
            start_s=start_s,
            args={},
        )


def _bars(events: Sequence[Event]) -> Iterator[_Bar]:
    """Every unit that was begun, with its end."""
    last_s = events[-1].time_s
    begun: dict[tuple[str, int, str], UnitBegun] = {}
    for event in events:
        if not isinstance(event, UnitEvent):
            continue
        key = event.worker, event.unit, event.call
        if isinstance(event, UnitBegun):
            begun[key] = event
        elif isinstance(event, UnitEnded) and key in begun:
            args = {
                "bytes_read": event.bytes_read,
                "bytes_written": event.bytes_written,
                "retries": event.retries,
            }
            stop_s = event.began_s + event.seconds
            yield _Bar(begun=begun.pop(key), began_s=event.began_s, stop_s=stop_s, args=args)
        elif isinstance(event, UnitFailed) and key in begun:
            one = begun.pop(key)
            why = {"failed": event.why}
            yield _Bar(begun=one, began_s=one.time_s, stop_s=event.time_s, args=why)
    for one in begun.values():
        yield _Bar(begun=one, began_s=one.time_s, stop_s=last_s, args={"failed": "not ended"})


def _by_worker(bars: Iterable[_Bar]) -> dict[str, list[_Bar]]:
    workers: dict[str, list[_Bar]] = {}
    for bar in sorted(bars, key=lambda bar: bar.began_s):
        workers.setdefault(bar.begun.worker, []).append(bar)
    return workers


def _lanes(bars: Iterable[_Bar]) -> list[int]:
    """A row for each, so that none overlaps another in its row.

    Args:
        bars: In the order in which they begin.
    """
    free_s: list[float] = []
    lanes = []
    for bar in bars:
        lane = next((i for i, stop_s in enumerate(free_s) if stop_s <= bar.began_s), len(free_s))
        free_s[lane:] = [bar.stop_s, *free_s[lane + 1 :]]
        lanes.append(lane)
    return lanes


def _unit(bar: _Bar, pid: int, tid: int, start_s: float) -> dict[str, Any]:
    begun = bar.begun
    name = begun.tensor if begun.call == "merge" else f"{begun.call} {begun.tensor}"
    args = {"unit": begun.unit, "shard": begun.shard, "bytes": begun.nbytes, **bar.args}
    return _complete(
        name, begun.call, (pid, tid), span_s=(bar.began_s, bar.stop_s), start_s=start_s, args=args
    )


def _complete(
    name: str,
    category: str,
    row: tuple[int, int],
    *,
    span_s: tuple[float, float],
    start_s: float,
    args: dict[str, Any],
) -> dict[str, Any]:
    began, stop = (_micros(at - start_s) for at in span_s)
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "ts": began,
        "dur": max(0, stop - began),
        "pid": row[0],
        "tid": row[1],
        "args": args,
    }


def _micros(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


def _instants(
    events: Iterable[Event], pids: dict[str, int], start_s: float
) -> Iterator[dict[str, Any]]:
    drawn = PhaseBegun, PhaseEnded, UnitBegun, UnitEnded
    for event in events:
        if isinstance(event, drawn):
            continue
        fields = event.as_json()
        at_node = isinstance(event, WorkerEvent)
        yield {
            "ph": "i",
            "name": fields.pop("event"),
            "cat": "event",
            "ts": _micros(event.time_s - start_s),
            "pid": pids[event.node] if isinstance(event, WorkerEvent) else DRIVER,
            "tid": 0,
            "s": "p" if at_node else "g",
            "args": fields,
        }
