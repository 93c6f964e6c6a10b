"""Sweeps that evaluate their trials and choose: on small models, scored by a real program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet

import raymerge
from raymerge.options import RunOptions
from raymerge.sweep.run import SweepResult
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, finish, shard_hashes, spawn
from tests.sweep import scorer

LOCAL: RunOptions = {"engine": "local", "device": "cpu", "workers": 2}
MACHINE = ("--engine", "local", "--device", "cpu", "--workers", 2)
INDEX = "model.safetensors.index.json"
WEIGHTS = [0, 0.25, 0.5, 0.75, 1]
"""Of model b; a is the base, so a trial is nearer to b the greater its weight."""


def grid(place: Place, weights: list[float] = WEIGHTS, **block: Any) -> Path:
    """A sweep from a to b, with its evaluator, in a place that has models."""
    script = place / "scorer.py"
    if not script.exists():
        shutil.copy(scorer.__file__, script)
        base = tiny_llama_tensors(0, layers=1, dtype=torch.float32)
        for name, tensors in {"a": base, "b": fine_tune(base, 1)}.items():
            place.model(name, tensors, config=llama_config(tensors))
    command = [sys.executable, str(script), "{checkpoint}", "{subset}", "{split}"]
    evaluate = {"command": command, **block.pop("evaluate", {})}
    return place.recipe(
        "task_arithmetic",
        {"b": {"weight": "$w"}},
        base="a",
        name="grid.yaml",
        sweep={"axes": {"w": weights}, "evaluate": evaluate, **block},
    )


def sweep(place: Place, recipe: Path, **how: Any) -> SweepResult:
    return raymerge.sweep(recipe, place / "out", **how, **LOCAL)


def states(result: SweepResult) -> dict[float, str]:
    return {float(one.values["w"]): one.state for one in result.trials}


def there(place: Place) -> set[float]:
    """Weights of the trials whose checkpoints are whole."""
    found = (place / "out").glob(f"*/{INDEX}")
    return {float(path.parent.name.split("-")[0].removeprefix("w=")) for path in found}


def calls(place: Place) -> list[str]:
    path = place / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def fail(place: Place, **how: str) -> None:
    (place / "fail.json").write_text(json.dumps(how))


def rows(place: Place, what: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = parquet.read_table(
        place / "out" / f"raymerge-{what}.parquet"
    ).to_pylist()
    return found


def test_the_best_that_clear_the_gates_are_kept(place: Place) -> None:
    recipe = grid(
        place,
        keep=2,
        by="like_b",
        at_least={"like_a": {"of": "a", "minus": 7}},
        gates={"like_b": 1},
    )
    result = sweep(place, recipe)

    by_weight = {float(one.values["w"]): one for one in result.trials}
    assert states(result) == {
        0: "removed",
        0.25: "removed",
        0.5: "kept",
        0.75: "kept",
        1: "removed",
    }
    assert by_weight[1].score == 100
    assert "like_a" in by_weight[1].missed[0]
    assert [by_weight[w].rank for w in WEIGHTS] == [4, 3, 2, 1, 5]
    assert there(place) == {0.5, 0.75}
    assert not result.failed
    for one in result.trials:
        assert {each.subset for each in one.evaluations} == {None}
    # A source is evaluated as it lies, once.
    assert sorted(calls(place)) == sorted(
        ["a all search", *(f"{t.name} all search" for t in result.trials)]
    )
    assert len(rows(place, "evaluations")) == 6
    assert [row["state"] for row in rows(place, "trials")] == [one.state for one in result.trials]

    before = calls(place)
    again = sweep(place, recipe)
    assert (again.resumed, again.bytes_read, calls(place)) == (5, 0, before)
    assert again.trials == result.trials
    # What was removed is made again if it is wanted after all.
    wider = sweep(place, grid(place, keep=4, by="like_b"))
    assert states(wider) == {0: "removed", 0.25: "kept", 0.5: "kept", 0.75: "kept", 1: "kept"}
    assert there(place) == {0.25, 0.5, 0.75, 1}
    assert calls(place) == before
    for one in wider.trials:
        (place / "alone.yaml").write_text(one.text)
        place.merged(place / "alone.yaml", "alone", "--overwrite")
        if one.state == "kept":
            assert shard_hashes(place / "alone") == shard_hashes(Path(one.out))


def test_only_the_best_of_a_subset_go_on(place: Place) -> None:
    recipe = grid(place, keep=1, by="like_b", subset={"sizes": [4, 16], "go_on": 0.5})
    result = sweep(place, recipe)

    subsets = {
        float(one.values["w"]): [each.subset for each in one.evaluations] for one in result.trials
    }
    assert subsets == {0: [4], 0.25: [4], 0.5: [4, 16], 0.75: [4, 16, None], 1: [4, 16, None]}
    assert states(result) == dict.fromkeys([0, 0.25, 0.5, 0.75], "removed") | {1: "kept"}
    assert [one.rank for one in result.trials] == [5, 4, 3, 2, 1]
    assert there(place) == {1}
    before = calls(place)
    assert sweep(place, recipe).trials == result.trials
    assert calls(place) == before


def test_the_kept_are_evaluated_on_examples_that_did_not_choose(place: Place) -> None:
    recipe = grid(place, keep=2, by="like_b", split={"search": "dev", "final": "test"})
    result = sweep(place, recipe)
    finals = [line for line in calls(place) if line.endswith("test")]
    kept = [one for one in result.trials if one.state == "kept"]
    assert sorted(finals) == sorted(f"{one.name} all test" for one in kept)
    assert [[each.split for each in one.evaluations] for one in kept] == [["search", "final"]] * 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_candidates_lie_in_scratch_until_they_are_kept(
    place: Place, request: pytest.FixtureRequest, *, elsewhere: bool
) -> None:
    scratch = place / "scratch"
    if elsewhere:
        # Places of tests are in memory where they can be: a disk is another file system.
        disk = tempfile.TemporaryDirectory(dir="/var/tmp")
        request.addfinalizer(disk.cleanup)
        scratch = Path(disk.name) / "scratch"
    recipe = grid(place, keep=2, by="like_b", scratch=str(scratch))
    result = sweep(place, recipe)

    assert not scratch.exists()
    assert there(place) == {0.75, 1}
    assert sorted(path.name for path in (place / "out").iterdir() if path.is_dir()) == sorted(
        [".raymerge-sweep", "report", *(one.name for one in result.trials if one.state == "kept")]
    )
    for one in result.trials[-2:]:
        (place / "alone.yaml").write_text(one.text)
        own = raymerge.merge(place / "alone.yaml", place / "alone", overwrite=True, **LOCAL)
        assert {shard.name: shard.sha256 for shard in own.shards} == shard_hashes(Path(one.out))
        assert {path.name for path in Path(one.out).iterdir()} == {
            path.name for path in (place / "alone").iterdir()
        }
        assert raymerge.verify(one.out).ok
    before = calls(place)
    assert sweep(place, recipe).trials == result.trials
    assert calls(place) == before


@pytest.mark.parametrize("scratch", ["out", "sub/../out"])
def test_scratch_is_not_where_the_kept_go(place: Place, scratch: str) -> None:
    recipe = grid(place, keep=1, by="like_b", scratch=str(place / scratch))
    (place / "sub").mkdir()
    done = place.run("sweep", recipe, place / "out", "--dry-run")

    assert done.rc == 2
    assert "scratch is cleared in the end; give another folder" in done.err
    assert place.run("sweep", recipe, place / "out", "--quiet").rc == 2
    assert not calls(place)


def test_out_is_the_same_however_it_is_spelt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.path)
    recipe = grid(place, keep=1, by="like_b")
    assert place.run("sweep", recipe, "out", "--quiet").rc == 0
    before = calls(place)
    for spelt in ("./out", place / "out"):
        assert place.run("sweep", recipe, spelt, "--quiet").rc == 0
        assert calls(place) == before
    assert there(place) == {1}


def test_people_are_told_that_no_trial_clears_its_gates(place: Place) -> None:
    recipe = grid(place, keep=1, by="like_b", gates={"like_b": 1000})
    done = place.run("sweep", recipe, place / "out", "--quiet")

    assert done.rc == 0
    assert "no trial clears its gates: none is kept" in done.out
    assert there(place) == set()
    some = grid(place, keep=1, by="like_b", gates={"like_b": 1})
    assert "no trial clears" not in place.run("sweep", some, place / "out", "--quiet").out


def test_of_a_traceback_people_see_the_error(place: Place) -> None:
    (place / "broken.py").write_text(
        "def score(checkpoint, **_):\n    raise KeyError('no such task')\n"
    )
    document = yaml.safe_load((recipe := grid(place, keep=1, by="like_b")).read_text())
    document["sweep"]["evaluate"] = {"python": f"{place / 'broken.py'}:score"}
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    done = place.run("sweep", recipe, place / "out")

    assert done.rc == 4
    assert "KeyError: 'no such task'" in done.err
    assert "KeyError: 'no such task'" in done.out
    assert "Traceback" not in done.out + done.err


def test_what_the_sweep_has_not_made_is_not_removed(place: Place) -> None:
    recipe = grid(place, keep=1, by="like_b")
    listed = place.run("sweep", recipe, place / "out", "--dry-run", "--json").json["trials"]
    first, second = (trial["name"] for trial in listed[:2])
    text = recipe.read_text()
    alone = yaml.safe_load(text)
    del alone["sweep"]
    alone["models"][0]["parameters"]["weight"] = 0
    (place / "alone.yaml").write_text(yaml.safe_dump(alone, sort_keys=False))
    raymerge.merge(place / "alone.yaml", place / "out" / first, **LOCAL)
    (place / "out" / second).mkdir()
    (place / "out" / second / "notes.txt").write_text("mine")
    result = sweep(place, recipe)

    assert states(result) == {
        0: "merged",
        0.25: "merged",
        0.5: "removed",
        0.75: "removed",
        1: "kept",
    }
    assert there(place) == {0, 0.25, 1}
    assert (place / "out" / second / "notes.txt").read_text() == "mine"


def test_a_kept_trial_whose_place_is_taken_fails(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b", scratch=str(place / "scratch"))
    listed = place.run("sweep", recipe, place / "out", "--dry-run", "--json").json["trials"]
    shutil.copytree(place / "a", place / "out" / listed[1]["name"])
    done = place.run("sweep", recipe, place / "out", *MACHINE, "--json")

    assert done.rc == 4
    assert "already holds a checkpoint" in done.json["trials"][1]["error"]
    assert shard_hashes(place / "out" / listed[1]["name"]) == shard_hashes(place / "a")
    assert not (place / "scratch").exists()
    again = sweep(place, recipe, overwrite=True)
    assert states(again) == {0.5: "removed", 1: "kept"}


@pytest.mark.ray
def test_evaluations_outlast_a_ray_of_our_own(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b", evaluate={"cpus": 1})
    result = raymerge.sweep(recipe, place / "out", engine="ray", device="cpu", workers=1)
    assert states(result) == {0.5: "removed", 1: "kept"}
    assert not result.failed


FAULTS = {"crash": "out of luck", "hang": "limit of 1 s", "rubbish": "all is well", "nan": "is nan"}


def test_a_failed_evaluation_is_recorded_and_made_again(place: Place) -> None:
    recipe = grid(place, keep=1, by="like_b", evaluate={"limit_s": 1})
    fail(place, **{f"w={w}-": how for w, how in zip((0.5, 0.75, 1, 0), FAULTS, strict=True)})
    done = place.run("sweep", recipe, place / "out", *MACHINE, "--json")

    assert done.rc == 4, done.err
    trials = {trial["values"]["w"]: trial for trial in done.json["trials"]}
    for w, how in zip((0.5, 0.75, 1, 0), FAULTS, strict=True):
        assert trials[w]["state"] == "failed"
        assert FAULTS[how] in trials[w]["error"]
        assert trials[w]["rank"] is None
        assert trials[w]["evaluations"][0]["scores"] == {}
    assert trials[0.25]["state"] == "kept"
    # Merged once, they need not be again.
    assert there(place) == {0, 0.25, 0.5, 0.75, 1}
    assert sum(row["error"] is not None for row in rows(place, "evaluations")) == 4

    fail(place)
    before = len(calls(place))
    again = sweep(place, recipe)
    assert states(again) == dict.fromkeys([0, 0.25, 0.5, 0.75], "removed") | {1: "kept"}
    assert (again.bytes_read, len(calls(place)) - before) == (0, 4)
    assert len(rows(place, "evaluations")) == 9
    assert sum(row["error"] is not None for row in rows(place, "evaluations")) == 4


def test_a_source_that_cannot_be_evaluated_ends_the_sweep_before_it_decides(
    place: Place,
) -> None:
    recipe = grid(place, keep=1, at_least={"like_a": {"of": "a"}})
    fail(place, **{f"{place.path}/a": "crash"})
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 1
    assert "the source a could not be evaluated" in done.err
    assert there(place) == set(WEIGHTS)
    fail(place)
    assert place.run("sweep", recipe, place / "out", *MACHINE).rc == 0


def test_another_evaluator_evaluates_again(place: Place) -> None:
    sweep(place, grid(place, [0.5, 1]))
    sweep(place, grid(place, [0.5, 1], split={"search": "dev", "final": "test"}))
    assert len([line for line in calls(place) if line.endswith("dev")]) == 2
    again = sweep(place, grid(place, [0.5, 1]))
    assert [[one.split for one in trial.evaluations] for trial in again.trials] == [["search"]] * 2
    assert len(calls(place)) == 6
    sweep(place, grid(place, [0.5, 1]), overwrite=True)
    assert len(calls(place)) == 8


def test_a_changed_evaluator_evaluates_again_and_says_so(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b")
    sweep(place, recipe)
    before = rows(place, "evaluations")
    quiet = place.run("sweep", recipe, place / "out", *MACHINE)
    assert "changed" not in quiet.err
    assert len(calls(place)) == 2

    script = place / "scorer.py"
    script.write_text(script.read_text().replace("100 - 1000 *", "50 - 1000 *"))
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 0, done.err
    assert f"{script} changed since trials of this sweep were evaluated" in done.err
    assert len(calls(place)) == 4
    found = rows(place, "evaluations")
    assert found[:2] == before
    assert [row["scores"] for row in found[2:]] != [row["scores"] for row in before]
    assert {float(one.score or 0) for one in sweep(place, recipe).trials} == {
        json.loads(row["scores"])["like_b"] for row in found[2:]
    }
    assert "changed" not in place.run("sweep", recipe, place / "out", *MACHINE).err
    assert len(calls(place)) == 4


def test_the_report_filters_by_what_sources_score(place: Place) -> None:
    recipe = grid(
        place, by="like_b", at_least={"like_a": {"of": "a", "minus": 7}}, gates={"like_b": 1}
    )
    result = sweep(place, recipe)
    page = (place / "out" / "report.html").read_text()

    assert '<option value="gate like_a">' in page
    assert "Gates: like_b at least 1, like_a at least 93." in page
    missing = {one.name for one in result.trials if any("like_a" in gate for gate in one.missed)}
    assert missing
    assert page.count('data-gates="like_a"') == len(missing)


def test_the_table_and_the_status(place: Place) -> None:
    recipe = grid(place, keep=1, by="like_b", gates={"like_a": 95})
    done = place.run("sweep", recipe, place / "out", *MACHINE, "--quiet")
    assert done.rc == 0, done.err
    head, *lines, last = done.out.splitlines()
    assert head.startswith("rank  trial")
    assert head.split()[2:] == ["score", "like_a", "like_b", "on", "state", "gates", "missed"]
    assert [line.split()[0] for line in lines] == list("12345")
    assert "kept" in lines[0]
    assert "is below 95" in lines[-1]
    assert "5 trials, 0 failed" in last
    status = place.run("sweep", "--status", place / "out")
    summed = f"{place / 'out'}: 5 trials: 1 kept, 4 removed; it does not run"
    assert status.out.splitlines() == [head, *lines, summed]
    found = place.run("sweep", "--status", place / "out", "--json").json
    assert {one["rank"] for one in found} == {1, 2, 3, 4, 5}
    assert all(one["evaluations"][0]["scores"] for one in found)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"at_least": {"like_a": {"of": "c"}}}, "there is no source 'c'; sources: a, b"),
        ({"keep": 1, "scratch": "s3://bucket/x"}, "is not on this machine"),
        ({"evaluate": {"tasks": ["math"]}, "keep": 1}, "no score for math"),
    ],
)
def test_what_cannot_be_is_said(place: Place, block: dict[str, Any], said: str) -> None:
    done = place.run("sweep", grid(place, [1], **block), place / "out", *MACHINE)
    assert done.rc in {2, 3, 4}
    assert said in done.err + done.out


def test_keep_needs_a_place_that_it_can_remove_from(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1)
    recipe.write_text(recipe.read_text() + 'out: "s3://bucket/$w"\n')
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 2
    assert "add scratch:" in done.err
    assert calls(place) == []


KILLED_AFTER = (1, 3, 5, 7)


@pytest.mark.parametrize("number", KILLED_AFTER)
def test_killed_while_it_evaluates_a_sweep_goes_on(place: Place, number: int) -> None:
    scratch = place / "scratch"
    split = {"search": "dev", "final": "test"}
    recipe = grid(place, keep=1, by="like_b", subset=[8], scratch=str(scratch), split=split)
    process = spawn("sweep", recipe, place / "out", *MACHINE, "--quiet")
    deadline = time.monotonic() + 60
    while len(calls(place)) < number and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    found = parquet_rows(place)
    result = sweep(place, recipe)

    assert states(result) == dict.fromkeys([0, 0.25, 0.5, 0.75], "removed") | {1: "kept"}
    assert there(place) == {1}
    assert not scratch.exists()
    assert raymerge.verify(result.trials[-1].out).ok
    for one in result.trials:
        assert len({(each.split, each.subset) for each in one.evaluations}) == len(one.evaluations)
    kept = rows(place, "evaluations")
    # What was known is as it was, and was not made again.
    assert kept[: len(found)] == found
    assert len(kept) == 5 + 3 + 1


def parquet_rows(place: Place) -> list[Mapping[str, Any]]:
    """Evaluations that a killed sweep has left, in their order."""
    folder = place / "out" / ".raymerge-sweep"
    whole = place / "out" / "raymerge-evaluations.parquet"
    paths = [*([whole] if whole.exists() else []), *sorted(folder.glob("evaluations-*.parquet"))]
    found = [row for path in paths for row in parquet.read_table(path).to_pylist()]
    return list({row["sequence"]: row for row in found}.values())
