"""Whoever listens hears of a run from its beginning to its end, and files hold whole lines."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raymerge
from raymerge.errors import PlanError
from raymerge.progress import Display, Roster
from raymerge.runtime.events import (
    Event,
    PhaseBegun,
    Published,
    ShardDone,
    UnitBegun,
    UnitEnded,
    UnitsResumed,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    nobody,
)
from raymerge.runtime.settings import Progress
from raymerge.runtime.watching import watched
from tests.conftest import Place, spawn
from tests.traces import check_trace

HERE: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 2, "shard_bytes": 8000}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_merge_tells_what_it_does(place: Place) -> None:
    place.llamas(2)
    heard: list[Event] = []
    result = raymerge.merge(
        place.any_recipe("ties", trim="model"),
        place / "out",
        on_event=heard.append,
        events=place / "events.jsonl",
        trace=place / "trace.json",
        **HERE,
    )

    assert lines(place / "events.jsonl") == [event.as_json() for event in heard]
    kinds = Counter(event.as_json()["event"] for event in heard)
    assert kinds["unit_begun"] == kinds["unit_ended"]
    assert kinds["phase_begun"] == kinds["phase_ended"]
    assert (heard[0].as_json()["event"], heard[-1].as_json()["event"]) == (
        "run_started",
        "run_ended",
    )
    assert [event.phase for event in heard if isinstance(event, PhaseBegun)] == [
        "plan", "claim", "engine", "survey", "survey count_high", "survey count_low",
        "survey count_ties", "merge", "publish",
    ]  # fmt: skip
    done = [event for event in heard if isinstance(event, UnitEnded)]
    assert sum(event.bytes_read for event in done) == result.bytes_read
    assert sum(event.bytes_written for event in done) == result.bytes_written
    shards = {event.shard: event.sha256 for event in heard if isinstance(event, ShardDone)}
    assert shards == {shard.name: shard.sha256 for shard in result.shards}
    (published,) = [event for event in heard if isinstance(event, Published)]
    assert (published.digest, published.workers) == (result.digest, 2)
    document = json.loads((place / "trace.json").read_text())
    check_trace(document)
    names = {event["name"] for event in document["traceEvents"] if event["ph"] == "X"}
    assert {"plan", "claim", "engine", "publish", "survey count_low"} <= names
    assert {"model.embed_tokens.weight", "count_high model.embed_tokens.weight"} <= names


def test_a_run_that_fails_says_so_and_a_later_one_goes_on_in_the_file(place: Place) -> None:
    place.llamas(2)
    files = ("--events", place / "events.jsonl", "--trace", place / "trace.json")
    recipe = place.any_recipe("ties")
    assert place.merge(recipe, "out", *files).rc == 0
    assert place.merge(place.any_recipe("linear"), "out", *files).rc == 2
    assert place.merge(recipe, "out", *files).rc == 0

    ends = [line for line in lines(place / "events.jsonl") if line["event"] == "run_ended"]
    assert [(end["ok"], end["error"]) for end in ends] == [
        (True, None), (False, "ConflictError"), (True, None),
    ]  # fmt: skip
    resumed = [line for line in lines(place / "events.jsonl") if line["event"] == "units_resumed"]
    assert len(resumed) == 1
    check_trace(json.loads((place / "trace.json").read_text()))


@pytest.mark.parametrize("flag", ["events", "trace"])
def test_a_file_that_cannot_be_written_is_found_first(place: Place, flag: str) -> None:
    done = place.merge(place / "gone.yaml", "out", f"--{flag}", place / "no" / "file")
    assert done.rc == 2
    assert f"--{flag} {place / 'no' / 'file'} cannot be written: No such file" in done.err
    assert not (place / "out").exists()


def test_a_killed_run_leaves_whole_lines(place: Place) -> None:
    place.llamas(2, layers=8)
    path = place / "events.jsonl"
    machine = ("--engine", "local", "--device", "cpu", "--workers", 1, "--shard-size", 700)
    recipe = place.any_recipe("ties")
    process = spawn("merge", recipe, place / "out", "--quiet", *machine, "--events", path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and "unit_ended" in path.read_text():
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert path.read_bytes().endswith(b"\n")
    assert "unit_ended" in {line["event"] for line in lines(path)}


def test_a_line_that_was_cut_is_ended_before_the_next(place: Place) -> None:
    path = place / "events.jsonl"
    path.write_text('{"event": "run_st')
    with watched("out", [nobody], events_path=str(path), trace_path=None):
        pass
    assert len(path.read_text().splitlines()) == 3
    with watched("out", [nobody], events_path=str(path), trace_path=None):
        pass
    assert len(path.read_text().splitlines()) == 5


def test_what_a_disk_takes_in_part_is_ended_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, cut = os.write, iter([10])
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[: next(cut, len(line))]))
    path = place / "events.jsonl"
    with watched("out", [nobody], events_path=str(path), trace_path=None):
        pass
    first, second = path.read_text().splitlines()
    assert len(first) == 10
    assert json.loads(second)["event"] == "run_ended"


def test_a_full_disk_ends_the_log_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        watched("out", [nobody], events_path="/dev/full", trace_path=None),
    ):
        pass
    assert caplog.text.count("no more events are written to /dev/full: ") == 1


def test_an_error_is_told_by_its_name_alone(place: Place) -> None:
    path = place / "events.jsonl"
    with (
        pytest.raises(PlanError),
        watched("out", [nobody], events_path=str(path), trace_path=None),
    ):
        raise PlanError("hf_secret")
    assert "hf_secret" not in path.read_text()
    assert lines(path)[-1]["error"] == "PlanError"


def test_progress_is_towards_what_a_resumed_run_has_left() -> None:
    display = Display()
    display.begin(SimpleNamespace(units=[SimpleNamespace(nbytes=2**20)] * 4))  # type: ignore[arg-type]
    display.hear(UnitsResumed(time_s=0, units=3, nbytes=3 * 2**20))
    display.add(Progress(read_bytes=5, written_bytes=2**19))
    assert "written 512.0 KiB of 1.0 MiB, " in display.line()
    display.add(Progress(written_bytes=2**20))  # a unit that was written twice
    assert display.line().endswith(", 0 s left")


def test_progress_knows_what_each_worker_is_at() -> None:
    roster = Roster()
    for number in (1, 2):
        roster.hear(WorkerJoined(time_s=0, worker=f"h:{number}", node="node-1", threads=1))
    assert roster.by_node(1)[0].startswith("h (node-1)  2 workers, 0 units at work, ")
    who = {"worker": "h:1", "node": "node-1", "call": "merge"}
    for unit in (7, 8):
        roster.hear(UnitBegun(time_s=1, **who, unit=unit, tensor=f"t{unit}", shard="s", nbytes=1))
    assert [line.split("  ")[-1] for line in roster.by_worker(2)] == ["t7 and 1 more", "idle"]
    roster.hear(
        UnitEnded(
            time_s=2, **who, unit=7, began_s=1, seconds=1,
            bytes_read=3 * 2**20, bytes_written=2**20, retries=0,
        )
    )  # fmt: skip
    roster.hear(WorkerDrained(time_s=3, worker="h:1", node="node-1"))
    assert roster.by_worker(4)[0] == "h:1 (draining)  1.0 MiB/s  t8"
    roster.hear(WorkerLost(time_s=4, worker="h:2", node="node-1", why="preempted"))
    assert roster.by_node(4) == []
    assert len(roster.by_worker(4)) == 1
