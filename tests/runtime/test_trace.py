"""Events become a trace that holds to the format, whatever order and clocks they come with."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raymerge.runtime.events import (
    Event,
    PhaseBegun,
    PhaseEnded,
    Spent,
    UnitBegun,
    UnitEnded,
    UnitFailed,
    WorkerJoined,
    WorkerLost,
    spent_within,
)
from raymerge.runtime.trace import DRIVER, trace
from tests.traces import check_trace

START_S = 1.7e9


def begun(at: float, unit: int = 0, worker: str = "h:1", node: str = "n1") -> UnitBegun:
    return UnitBegun(
        time_s=START_S + at,
        worker=worker,
        node=node,
        unit=unit,
        call="merge",
        tensor=f"t{unit}",
        shard="s",
        nbytes=8,
    )


def ended(at: float, began_s: float, unit: int = 0, worker: str = "h:1") -> UnitEnded:
    return UnitEnded(
        time_s=START_S + at,
        worker=worker,
        node="n1",
        unit=unit,
        call="merge",
        began_s=START_S + began_s,
        seconds=at - began_s,
        bytes_read=16,
        bytes_written=8,
        retries=0,
    )


def bars(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == "X"]


def test_a_run_without_events_is_an_empty_trace() -> None:
    assert trace([])["traceEvents"] == []


def test_units_that_run_at_once_stand_in_rows_of_their_own() -> None:
    document = trace(
        [begun(0), begun(0, 1), ended(2, 0), ended(3, 1, 1), begun(3, 2), ended(4, 3, 2)]
    )
    check_trace(document)

    assert [(bar["name"], bar["tid"], bar["ts"], bar["dur"]) for bar in bars(document)] == [
        ("t0", 0, 0, 2_000_000),
        ("t1", 1, 1_000_000, 2_000_000),
        ("t2", 0, 3_000_000, 1_000_000),
    ]
    assert bars(document)[0]["args"] == {
        "unit": 0, "shard": "s", "bytes": 8, "bytes_read": 16, "bytes_written": 8, "retries": 0,
    }  # fmt: skip


def test_a_unit_that_failed_says_why_and_one_that_never_ended_too() -> None:
    who = {"worker": "h:1", "node": "n1"}
    lost = WorkerLost(time_s=START_S + 2, **who, why="died")
    failed = UnitFailed(time_s=START_S + 2, **who, unit=0, call="merge", why="died")
    document = trace(
        [begun(0), lost, failed, begun(3, 1), PhaseBegun(time_s=START_S + 4, phase="x")]
    )
    check_trace(document)

    found = {bar["name"]: bar["args"].get("failed") for bar in bars(document)}
    assert found == {"t0": "died", "t1": "not ended", "x": None}
    assert [e["name"] for e in document["traceEvents"] if e["ph"] == "i"] == [
        "worker_lost",
        "unit_failed",
    ]


def test_driver_and_nodes_are_processes() -> None:
    joined = [
        WorkerJoined(time_s=START_S, worker=f"h:{n}", node=f"node-{n % 2}-abc", threads=1)
        for n in range(3)
    ]
    phases = [
        PhaseBegun(time_s=START_S, phase="plan"),
        PhaseEnded(time_s=START_S + 1, phase="plan", seconds=1),
    ]
    document = trace([*phases, *joined])
    check_trace(document)

    names = {
        e["pid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"
    }
    assert names == {DRIVER: "driver", 2: "h (node-0-a)", 3: "h (node-1-a)"}


TIMES = st.floats(0, 100)


@given(units=st.lists(st.tuples(TIMES, TIMES, TIMES), max_size=12))
def test_any_units_make_a_trace(units: list[tuple[float, float, float]]) -> None:
    events: list[Event] = []
    for number, (given_s, taken_s, skew_s) in enumerate(units):
        end_s = START_S + given_s + taken_s
        spent = spent_within(Spent(START_S + skew_s, taken_s / 2), START_S + given_s, end_s)
        events.append(begun(given_s, number))
        events.append(
            UnitEnded(
                time_s=end_s, worker="h:1", node="n1", unit=number, call="merge",
                began_s=spent.began_s, seconds=spent.seconds,
                bytes_read=0, bytes_written=0, retries=0,
            )
        )  # fmt: skip
    check_trace(trace(events))


@given(began_s=TIMES, seconds=TIMES, given_s=TIMES, taken_s=TIMES)
def test_a_skewed_clock_changes_no_order(
    began_s: float, seconds: float, given_s: float, taken_s: float
) -> None:
    spent = spent_within(Spent(began_s, seconds), given_s, given_s + taken_s)

    assert given_s - 1e-9 <= spent.began_s
    assert spent.began_s + spent.seconds <= given_s + taken_s + 1e-9
    assert 0 <= spent.seconds <= seconds
    if given_s <= began_s and began_s + seconds <= given_s + taken_s:
        assert spent.seconds <= seconds
        assert abs(spent.began_s - began_s) < 1e-9
