"""The rules of Chrome's trace-event format that Perfetto reads a document by."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

PHASES = {"X": {"ts", "dur"}, "i": {"ts", "s"}, "M": {"args"}}
"""Fields that each kind of event has to have besides `name`, `pid` and `tid`."""
METADATA = {"process_name", "thread_name"}


def check_trace(document: dict[str, Any]) -> None:
    """Assert that a document holds to the format, and that no two bars cross in a row."""
    assert isinstance(document["traceEvents"], list)
    rows: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    named: dict[str, set[tuple[int, int]]] = defaultdict(set)
    used: set[tuple[int, int]] = set()
    for event in document["traceEvents"]:
        assert PHASES[event["ph"]] <= event.keys(), event
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        row = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in METADATA
            assert event["args"].keys() == {"name"}
            assert row not in named[event["name"]], event
            named[event["name"]].add(row)
            continue
        assert isinstance(event["ts"], int)
        assert event["ts"] >= 0
        if event["ph"] == "i":
            assert event["s"] in {"g", "p", "t"}
            continue
        assert isinstance(event["dur"], int)
        assert event["dur"] >= 0
        rows[row].append((event["ts"], event["ts"] + event["dur"]))
        used.add(row)
    assert used <= named["thread_name"]
    assert {pid for pid, _ in used} <= {pid for pid, _ in named["process_name"]}
    for bars in rows.values():
        _check_nested(sorted(bars, key=lambda bar: (bar[0], -bar[1])))


def _check_nested(bars: list[tuple[int, int]]) -> None:
    """Bars of one row stand beside or inside each other."""
    open_: list[int] = []
    for began, stop in bars:
        while open_ and open_[-1] <= began:
            open_.pop()
        assert not open_ or stop <= open_[-1], bars
        open_.append(stop)
