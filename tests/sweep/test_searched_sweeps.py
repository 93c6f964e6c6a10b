"""Searches, soups and paths from the command line: merged, scored by a real program, killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Done, Place, finish, spawn
from tests.sweep import scorer

MACHINE = ("--engine", "local", "--device", "cpu", "--workers", 2, "--quiet", "--json")


def models(place: Place) -> None:
    shutil.copy(scorer.__file__, place / "scorer.py")
    base = tiny_llama_tensors(0, layers=1, dtype=torch.float32)
    for seed, name in enumerate("abc"):
        tensors = fine_tune(base, seed) if seed else base
        place.model(name, tensors, config=llama_config(tensors))


def recipe(place: Place, *, top: dict[str, Any] | None = None, **block: Any) -> Path:
    if not (place / "a").exists():
        models(place)
    command = [sys.executable, str(place / "scorer.py"), "{checkpoint}", "{subset}", "{split}"]
    path = place / "searched.yaml"
    block = {**block, "evaluate": {"command": command}}
    path.write_text(yaml.safe_dump({**(top or {}), "sweep": block}, sort_keys=False))
    return path


def searched(place: Place, sampler: str, trials: int = 18, **block: Any) -> Path:
    top = {
        "merge_method": "task_arithmetic",
        "base_model": str(place / "a"),
        "models": [
            {"model": str(place / name), "parameters": {"weight": f"${name}"}} for name in "bc"
        ],
    }
    axes = {name: {"uniform": [0, 1]} for name in "bc"}
    search = {"sampler": sampler, "trials": trials, "round": 6}
    return recipe(place, top=top, axes=axes, search=search, **{"by": "like_b", **block})


def sweep(place: Place, path: Path, out: str = "out") -> Done:
    return place.run("sweep", path, place / out, *MACHINE)


def names(done: Done) -> list[str]:
    return [trial["name"] for trial in done.json["trials"]]


def calls(place: Place) -> Counter[str]:
    path = place / "calls.txt"
    return Counter(path.read_text().splitlines() if path.exists() else [])


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "gp"])
def test_a_search_merges_a_round_with_one_read_and_keeps_its_best(
    place: Place, sampler: str
) -> None:
    trials = 12 if sampler == "gp" else 18
    path = searched(place, sampler, trials, keep=1)
    listed = place.run("sweep", path, place / "out", "--dry-run", "--json").json["trials"]
    done = sweep(place, path)

    assert done.rc == 0, done.err
    assert names(done)[:6] == [trial["name"] for trial in listed]
    assert len(names(done)) <= trials
    [kept] = [trial for trial in done.json["trials"] if trial["state"] == "kept"]
    assert kept["score"] == max(trial["score"] for trial in done.json["trials"])
    assert (place / "out" / kept["name"] / "model.safetensors.index.json").exists()
    size = sum(path.stat().st_size for name in "abc" for path in (place / name).glob("*.saf*"))
    rounds = trials / 6
    assert done.json["bytes_read"] < 1.1 * rounds * size


def test_a_search_that_is_killed_goes_on_with_the_same_trials(place: Place) -> None:
    path = searched(place, "tpe")
    whole = names(sweep(place, path, "whole"))
    (place / "calls.txt").unlink()
    process = spawn("sweep", path, place / "out", *MACHINE)
    while sum(calls(place).values()) < 9:
        assert process.poll() is None, finish(process).err
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)

    done = sweep(place, path)
    assert done.rc == 0, done.err
    assert names(done) == whole
    assert done.json["resumed"] >= 6
    # At most the evaluation that was under way was made twice.
    assert sorted(calls(place).values(), reverse=True)[1:] == [1] * (len(whole) - 1)


def test_what_fails_is_recorded_and_the_search_goes_on(place: Place) -> None:
    path = searched(place, "tpe")
    first = place.run("sweep", path, place / "out", "--dry-run", "--json").json["trials"]
    (place / "fail.json").write_text(json.dumps({first[2]["name"]: "crash"}))
    done = sweep(place, path)

    assert done.rc == 4
    assert len(names(done)) == 18
    failed = [trial["name"] for trial in done.json["trials"] if trial["state"] == "failed"]
    assert failed == [first[2]["name"]]


def test_a_front_is_searched_and_gates_are_held(place: Place) -> None:
    path = searched(place, "nsga2", by={"pareto": ["like_a", "like_b"]}, gates={"like_a": 85})
    done = sweep(place, path)

    assert done.rc == 0, done.err
    kept = [trial for trial in done.json["trials"] if trial["state"] == "kept"]
    assert kept
    assert all(trial["evaluations"][0]["scores"]["like_a"] >= 85 for trial in kept)


def test_a_soup_is_stirred_and_goes_on_after_it_was_done(place: Place) -> None:
    soup = {"models": [str(place / name) for name in "abc"]}
    path = recipe(place, greedy_soup=soup, by={"like_a": 1, "like_b": 1}, keep=1)
    done = sweep(place, path)

    assert done.rc == 0, done.err
    soups = [trial["values"]["soup"] for trial in done.json["trials"]]
    assert soups[:3] == ["a", "b", "c"]
    assert len(soups) == 5
    [kept] = [trial for trial in done.json["trials"] if trial["state"] == "kept"]
    singles = [trial["score"] for trial in done.json["trials"][:3]]
    assert kept["score"] >= max(singles)
    again = sweep(place, path)
    assert (names(again), again.json["bytes_read"]) == (names(done), 0)
    made = place.run("reproduce", place / "out", names(done)[0], place / "again")
    assert made.rc == 0, made.err


def test_an_arc_has_its_ends_and_its_barriers(place: Place) -> None:
    ends = {"from": str(place / "a"), "to": str(place / "b"), "points": 3, "along": "arc"}
    done = sweep(place, recipe(place, path=ends))

    assert done.rc == 0, done.err
    scores = [trial["evaluations"][0]["scores"] for trial in done.json["trials"]]
    assert scores[0]["like_a"] == pytest.approx(100)
    assert scores[2]["like_b"] == pytest.approx(100)
    sag = (scores[0]["like_a"] + scores[2]["like_a"]) / 2 - scores[1]["like_a"]
    assert done.json["barriers"]["like_a"]["height"] == pytest.approx(max(sag, 0), abs=1e-9)
    told = place.run("sweep", "--status", place / "out")
    assert "barrier of like_a: " in told.out


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"axes": {"w": [1]}, "search": {"trials": 3}}, "search: goes by scores"),
        ({"axes": {"w": [1]}, "greedy_soup": {"models": ["a", "b"]}}, "there is axes"),
        ({"path": {"from": "a", "to": "b"}, "sample": {"n": 3}}, "sample: there is path"),
        ({"path": {"from": "a", "to": "b"}}, "path: goes by scores"),
        ({"path": {"from": "a", "to": "a"}, "evaluate": {"python": "a:b"}}, "a path has two ends"),
        ({"greedy_soup": {"models": ["a", "b"]}}, "greedy_soup: goes by scores"),
    ],
)
def test_a_block_that_cannot_be_is_refused(tmp_path: Path, block: Any, said: str) -> None:
    place = Place(tmp_path)
    path = place / "bad.yaml"
    path.write_text(yaml.safe_dump({"sweep": block}))
    done = sweep(place, path)
    assert done.rc == 2
    assert said in done.error["message"]
    assert not (place / "out").exists()


def test_a_soup_is_not_stopped_early_and_a_search_knows_its_ends_beforehand(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    soup = {"models": ["a", "b"]}
    done = sweep(place, recipe(place, greedy_soup=soup, subset=[5]))
    assert "subset: greedy_soup compares its trials on the same examples" in done.error["message"]
    text = searched(place, "tpe").read_text().replace("weight: $b", "weight: 1 / (1 - $b)")
    (place / "ends.yaml").write_text(text)
    done = sweep(place, place / "ends.yaml")
    assert done.rc == 2
    assert "cannot be worked out" in done.error["message"]


def test_of_equal_soups_the_larger_is_kept(place: Place) -> None:
    soup = {"models": [str(place / name) for name in "abc"]}
    path = recipe(place, greedy_soup=soup, keep=1)
    (place / "fail.json").write_text(json.dumps({"": "even"}))
    done = place.run("sweep", path, place / "out", *MACHINE[:-1])

    assert done.rc == 0, done.err
    [named] = [line for line in done.out.splitlines() if line.startswith("the soup: ")]
    assert named.startswith("the soup: a + b + c, which is models=3_soup=a-b-c-")
    [kept] = [path.parent.name for path in (place / "out").glob("*/config.json")]
    assert named.endswith(f"which is {kept}")
    assert sweep(place, path).json["soup"] == ["a", "b", "c"]
