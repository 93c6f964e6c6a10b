"""`raymerge sweep --dry-run`: the trials, the groups of equal layout, the rounds of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymerge.plan.memory import PROCESS_BYTES, THREAD_BYTES, upload_bytes
from tests.conftest import Done, Place
from tests.servers.seaweed import S3

MACHINE = ("--engine", "local", "--device", "cpu", "--workers", 2)


def outlined(place: Place, *words: object) -> Done:
    done = place.run("sweep", *words, place / "out", "--dry-run", *MACHINE)
    assert not (place / "out").exists()
    return done


def grid(place: Place, axes: dict[str, list[float]]) -> Path:
    knobs = {"density": 0.5, **{name: f"${name}" for name in axes}}
    return place.recipe(
        "ties", base="base", name="grid.yaml", parameters=knobs, sweep={"axes": axes}
    )


def test_trials_of_one_layout_are_a_group(place: Place) -> None:
    place.llamas()
    recipe = grid(place, {"weight": [0.5, 1], "lambda": [0.5, 1, 2]})
    done = outlined(place, recipe)

    assert done.rc == 0, done.err
    head, *trials, last = done.out.splitlines()
    assert head == "group 1: 6 trials of 21 tensors, 1 shard, 14.2 KiB each, in 1 round"
    assert [line.split() for line in trials] == [
        [name, f"{place / 'out'}/{name}"] for name in (line.split()[0] for line in trials)
    ]
    assert len(trials) == 6
    assert last == "6 trials in 1 group, 1 round: in each the sources are read once"


def test_layouts_and_surveys_make_groups(place: Place) -> None:
    place.llamas()
    shared: dict[str, Any] = {"base": "base", "parameters": {"weight": 1, "density": 0.5}}
    recipes = [
        place.recipe("ties", name="ties.yaml", **shared),
        place.recipe("dare_ties", name="dare.yaml", **shared),
        place.recipe("linear", name="wide.yaml", parameters={"weight": 1}, dtype="float32"),
        place.recipe("ties", name="surveyed.yaml", trim="model", **shared),
        place.recipe("ties", name="surveyed-2.yaml", trim="model", seed=1, **shared),
        place.recipe("linear", ("a", "gone"), name="gone.yaml", parameters={"weight": 1}),
    ]
    done = outlined(place, *recipes, "--json")

    assert done.rc == 4
    groups = [group["rounds"] for group in done.json["groups"]]
    assert groups == [[["ties", "dare"]], [["wide"]], [["surveyed"]], [["surveyed-2"]]]
    assert [trial["group"] for trial in done.json["trials"]] == [1, 1, 2, 3, 4, None]
    written = [group["bytes_written"] for group in done.json["groups"]]
    assert 1.8 * written[0] < written[1] < 2 * written[0]
    assert "gone" in done.json["trials"][-1]["error"]
    told = outlined(place, *recipes)
    assert "cannot be planned: 1 trial" in told.out
    assert "5 trials in 4 groups, 4 rounds" in told.out


def test_where_nothing_can_be_planned_nothing_is_said_of_reads(place: Place) -> None:
    place.llamas()
    done = outlined(place, place.recipe("linear", ("a", "gone"), parameters={"weight": 1}))

    assert done.rc == 4
    assert done.out.splitlines()[0] == "cannot be planned: 1 trial"
    assert "sources are read" not in done.out


def test_a_large_group_takes_several_rounds_and_they_are_those_of_the_sweep(place: Place) -> None:
    place.llamas()
    recipe = grid(place, {"weight": [i / 40 for i in range(1, 41)]})
    [group] = outlined(place, recipe, "--json").json["groups"]
    assert [len(names) for names in group["rounds"]] == [32, 8]
    assert "in 2 rounds of 32 + 8" in outlined(place, recipe).out

    done = place.run(
        "sweep", recipe, place / "out", *MACHINE, "--quiet", "--events", place / "events.jsonl"
    )
    assert done.rc == 0, done.err
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    merges = [e for e in events if e["event"] == "phase_begun" and e["phase"] == "merge"]
    assert len(merges) == 2
    ended = [event["trial"] for event in events if event["event"] == "trial_ended"]
    assert set(ended[:32]) == set(group["rounds"][0])


def test_what_does_not_fit_at_once_is_said(place: Place, s3: S3) -> None:
    place.llamas()
    recipe = grid(place, {"weight": [i / 8 for i in range(1, 9)]})
    recipe.write_text(recipe.read_text() + f'out: "{s3.url("$weight")}"\n')
    memory = PROCESS_BYTES + 2 * (THREAD_BYTES + 4 * upload_bytes(1))
    done = outlined(place, recipe, "--memory", memory, "--json")

    assert done.rc == 0, done.err
    notes = [line for line in done.err.splitlines() if "do not fit --memory at once" in line]
    [group] = done.json["groups"]
    assert notes[0].startswith("8 trials")
    assert len(group["rounds"]) == len(notes) + 1
    assert sum(map(len, group["rounds"])) == 8


def test_a_search_shows_its_first_round(place: Place) -> None:
    place.llamas()
    recipe = place.recipe(
        "linear",
        parameters={"weight": "$w"},
        sweep={
            "axes": {"w": {"uniform": [0, 1]}},
            "search": {"trials": 20, "round": 5},
            "evaluate": {"command": "true {checkpoint}"},
        },
    )
    done = outlined(place, recipe)
    assert "5 trials in 1 group, 1 round" in done.out
    assert done.out.endswith("; more may follow, by what these score\n")
    assert outlined(place, recipe, "--json").json["goes_on"]


@pytest.mark.parametrize("scratch", [None, "scratch"])
def test_nothing_is_made(place: Place, scratch: str | None) -> None:
    place.llamas()
    block: dict[str, Any] = {"axes": {"w": [0.5, 1]}, "evaluate": {"command": "true {checkpoint}"}}
    if scratch:
        block["scratch"] = str(place / scratch)
    recipe = place.recipe("linear", parameters={"weight": "$w"}, sweep=block)
    before = sorted(place.path.rglob("*"))
    done = place.run("sweep", recipe, place / "out", "--dry-run", *MACHINE)
    assert done.rc == 0, done.err
    assert sorted(place.path.rglob("*")) == before
