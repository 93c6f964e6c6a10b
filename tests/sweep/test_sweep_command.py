"""`raymerge sweep` and `reproduce` from the command line, on small models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from raymerge.errors import ConflictError
from raymerge.sweep.ledger import Ledger, read_rows
from raymerge.sweep.record import TrialRecord
from tests.conftest import Done, Place, shard_hashes
from tests.traces import check_trace

MACHINE = ("--engine", "local", "--device", "cpu", "--workers", 2, "--quiet")


def grid(place: Place, *, weights: str = "[0.5, 0.25]") -> Path:
    path = place / "grid.yaml"
    path.write_text(
        f"merge_method: linear\nmodels: [{place / 'a'}, {place / 'b'}]\n"
        f"parameters: {{weight: $w}}\nsweep: {{axes: {{w: {weights}}}}}\n"
    )
    return path


def sweep(place: Place, *words: object) -> Done:
    return place.run("sweep", *words, place / "out", *MACHINE)


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and "parquet" not in path.name
    }


def test_a_sweep_tells_what_it_does(place: Place) -> None:
    broken = {**place.llamas(), "extra.weight": torch.ones(4)}
    place.model("c", broken)
    recipes = [
        place.recipe("linear", ("a", "c"), name="broken.yaml", parameters={"weight": 1}),
        place.recipe("linear", ("a", "base"), parameters={"weight": 1}),
        *map(place.any_recipe, ("ties", "dare_ties")),
    ]
    watched = ("--events", place / "events.jsonl", "--trace", place / "trace.json")
    done = sweep(place, *recipes, *watched, "--json")
    assert done.rc == 4, done.err
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    kinds = Counter(event["event"] for event in events)

    assert (events[0]["event"], events[-1]["event"]) == ("run_started", "run_ended")
    assert kinds["phase_begun"] == kinds["phase_ended"]
    assert kinds["unit_begun"] == kinds["unit_ended"] > 0
    assert kinds["planned"] == kinds["published"] == 3
    ended = {event["trial"]: event for event in events if event["event"] == "trial_ended"}
    assert ended.keys() == {trial["name"] for trial in done.json["trials"]}
    assert {e["trial"] for e in ended.values() if e["error"] == "PlanError"} == {"broken"}
    for trial in done.json["trials"]:
        told = ended[trial["name"]]
        assert (told["output"], told["digest"]) == (trial["out"], trial["digest"])
    written = sum(event["bytes_written"] for event in events if event["event"] == "unit_ended")
    assert written == done.json["bytes_written"]
    check_trace(json.loads((place / "trace.json").read_text()))


def test_a_sweep_its_resumption_and_a_trial_again(place: Place) -> None:
    place.llamas()
    recipe = grid(place)
    listed = place.run("sweep", recipe, place / "out", "--dry-run", "--json").json["trials"]
    assert [trial["values"] for trial in listed] == [{"w": 0.5}, {"w": 0.25}]
    assert not (place / "out").exists()

    done = sweep(place, recipe, "--json")
    assert done.rc == 0, done.err
    names = [trial["name"] for trial in done.json["trials"]]
    assert names == [trial["name"] for trial in listed]
    rows = parquet.read_table(place / "out" / "raymerge-trials.parquet").to_pylist()
    assert [row["name"] for row in rows] == names
    for row in rows:
        (place / "alone.yaml").write_text(row["recipe"])
        assert place.merge(place / "alone.yaml", "alone", "--overwrite").rc == 0
        assert shard_hashes(place / "alone") == shard_hashes(Path(row["out"]))

    page = (place / "out" / "report.html").read_text()
    assert all(row["recipe"].splitlines()[0] in page for row in rows)
    assert all(f"raymerge reproduce {place / 'out'} {name}" in page for name in names)
    assert (place / "out" / "report" / "cost-bytes.png").exists()

    again = sweep(place, recipe, "--json").json
    assert (again["resumed"], again["bytes_read"]) == (2, 0)
    wider = sweep(place, grid(place, weights="[0.5, 0.25, 1]"), "--json").json
    assert (wider["resumed"], len(wider["trials"])) == (2, 3)
    assert len(place.run("sweep", "--status", place / "out", "--json").json) == 3

    made = place.run("reproduce", place / "out", names[1], place / "again")
    assert made.rc == 0, made.err
    assert every_file(place / "again") == every_file(place / "out" / names[1])
    by_its_beginning = place.run("reproduce", place / "out", "w=0.5", place / "short")
    assert by_its_beginning.rc == 0, by_its_beginning.err
    assert every_file(place / "short") == every_file(place / "out" / names[0])
    several = place.run("reproduce", place / "out", "w=0", place / "third")
    assert several.rc == 3
    assert "'w=0' begins 2 trials: w=0.25-" in several.err
    place.llamas(number=1)
    assert place.run("reproduce", place / "out", names[1], place / "third").rc == 2


def test_recipes_by_file_and_one_that_fails_alone(place: Place) -> None:
    place.llamas()
    good = place.recipe("linear", name="good.yaml", parameters={"weight": 1}, out=f"{place.path}/x")
    bad = place.recipe("linear", ("a", "gone"), name="bad.yaml", parameters={"weight": 1})
    done = sweep(place, good, bad, "--json")
    assert done.rc == 4
    states = {trial["name"]: trial["state"] for trial in done.json["trials"]}
    assert states == {"good": "merged", "bad": "failed"}
    assert (place / "x" / "model.safetensors.index.json").exists()
    twice = sweep(place, good, good)
    assert twice.rc == 2
    assert "name is 'good'" in twice.err or "-good" in twice.err


def test_rows_outlive_a_kill_and_one_process_holds_them(tmp_path: Path) -> None:
    def record(name: str, error: str | None) -> TrialRecord:
        return TrialRecord(
            name=name, digest="d", values={"w": 0.5}, seed=2**64 - 1, text="t", out="o",
            state="failed" if error else "merged", error=error, seconds=1.0, bytes_read=1,
            bytes_written=2, evaluations=(), missed=(), score=None,
        )  # fmt: skip

    ledger = Ledger(tmp_path, shard_bytes=None)
    ledger.append(record("a", "first"))
    ledger.append(record("a", None))
    ledger.append(record("b", None))
    with pytest.raises(ConflictError):
        Ledger(tmp_path, shard_bytes=None)
    # As a kill leaves it: nothing was put together.
    assert {name: row["error"] for name, row in read_rows(tmp_path).items()} == dict.fromkeys("ab")
    ledger.close()
    with Ledger(tmp_path, shard_bytes=None) as again:
        assert again.records()["a"] == record("a", None)
        again.append(record("c", None))
    assert list(read_rows(tmp_path)) == ["a", "b", "c"]
    assert not list((tmp_path / ".raymerge-sweep").glob("*.parquet"))
