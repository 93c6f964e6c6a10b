"""Sweeps on a Ray cluster that is there: who evaluates where, and what happens to it meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import raymerge
from raymerge.runtime.events import Event, UnitBegun, UnitEnded, WorkerLost
from raymerge.sweep.ledger import read_rows
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.clusters import Nodes, nodes
from tests.conftest import Done, Place, finish, shard_hashes, spawn
from tests.e2e import judge

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
INDEX = "model.safetensors.index.json"
WEIGHTS = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Of two nodes with a GPU each, started in a folder of its own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        with nodes(2, num_cpus=2, num_gpus=1) as started:
            os.chdir(before)
            yield started
    finally:
        os.chdir(before)


def models(place: Place, layers: int = 1) -> None:
    base = tiny_llama_tensors(0, layers=layers, dtype=torch.float32)
    for seed, name in enumerate(("base", "a", "b")):
        tensors = fine_tune(base, seed) if seed else base
        place.model(name, tensors, config=llama_config(tensors))


def grid(place: Place, weights: Sequence[float] = WEIGHTS, **block: Any) -> Path:
    return place.recipe(
        "ties",
        base="base",
        name="grid.yaml",
        parameters={"weight": "$w", "density": 0.5},
        sweep={"axes": {"w": list(weights)}, **block},
    )


def machine(cluster: Nodes, *more: object) -> list[object]:
    return [
        "--engine", "ray", "--address", cluster.address, "--device", "cpu", "--memory", "1GiB",
        *more,
    ]  # fmt: skip


def check_own(place: Place, out: Path) -> None:
    """Each trial is what its own merge is."""
    for row in read_rows(out).values():
        assert row["state"] == "merged", row
        (place / "alone.yaml").write_text(row["recipe"])
        assert place.merge(place / "alone.yaml", "alone", "--overwrite").rc == 0
        assert shard_hashes(place / "alone") == shard_hashes(Path(row["out"])) != {}


def test_relative_paths_are_those_of_the_folder_that_a_merge_is_begun_in(
    place: Place, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(place)
    recipe = place.recipe("ties", base="base", parameters={"weight": 1, "density": 0.5})
    expected = place.merge(recipe, "expected")
    recipe.write_text(recipe.read_text().replace(f"{place.path}/", ""))
    monkeypatch.chdir(place.path)
    done = place.run("merge", "recipe.yaml", "out", *machine(cluster, "--workers", 2), "--json")

    assert (expected.rc, done.rc) == (0, 0), done.err
    assert shard_hashes(place / "out") == shard_hashes(place / "expected") != {}


# --- evaluation ----------------------------------------------------------------------------------


def judged(place: Place, cluster: Nodes, recipe: str, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A sweep from the folder where its script is, by its relative name."""
    shutil.copy(judge.__file__, place / "judge.py")
    monkeypatch.chdir(place.path)
    return place.run("sweep", recipe, "out", *machine(cluster, "--workers", 1), "--json")


def seen(place: Place) -> list[dict[str, Any]]:
    """What each evaluation noted, in the order in which they began."""
    notes = [json.loads(line) for line in (place / "seen.jsonl").read_text().splitlines()]
    return sorted(notes, key=lambda note: note["began"])


def most_at_once(notes: Sequence[dict[str, Any]]) -> int:
    begun = [note["began"] for note in notes]
    counts = [sum(bool(one["began"] <= at < one["ended"]) for one in notes) for at in begun]
    return max(counts)


def test_each_evaluation_has_a_gpu_of_its_own(
    place: Place, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(place)
    command = ["python3", "judge.py", "{checkpoint}", "0.5"]
    grid(place, keep=1, evaluate={"command": command, "cpus": 0.5, "gpus": 1})
    done = judged(place, cluster, "grid.yaml", monkeypatch)

    assert done.rc == 0, done.err
    trials = done.json["trials"]
    assert sorted(trial["state"] for trial in trials) == ["kept", *["removed"] * 4]
    notes = seen(place)
    assert len(notes) == len(WEIGHTS)
    # Two GPUs, so two at once, each on one of its own.
    assert most_at_once(notes) == 2
    for one in notes:
        assert one["devices"] == "0"
        assert one["threads"] == "1"
        assert one["parent"] != os.getpid()
    overlapping = [
        (one["grandparent"], other["grandparent"])
        for one in notes
        for other in notes
        if one is not other and one["began"] <= other["began"] < one["ended"]
    ]
    assert overlapping
    assert all(mine != theirs for mine, theirs in overlapping)
    for trial in trials:
        [evaluation] = trial["evaluations"]
        assert evaluation["worker"].startswith(f"{socket.gethostname()}:")
    assert raymerge.verify(place / "out" / max(trials, key=lambda t: t["score"])["name"]).ok


def test_a_python_function_is_found_from_where_the_sweep_was_begun(
    place: Place, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(place)
    grid(place, [0.5, 1], evaluate={"python": "judge.py:score", "gpus": 0.5})
    done = judged(place, cluster, "grid.yaml", monkeypatch)

    assert done.rc == 0, done.err
    assert most_at_once(seen(place)) <= 4
    assert {note["devices"] for note in seen(place)} == {"0"}


def test_a_merge_waits_for_room_that_evaluations_hold(
    place: Place, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of two layouts, so two merges; the evaluations of the first hold all CPUs."""
    models(place)
    (place / "base").rename(place / "small")
    models(place, layers=2)
    command = ["python3", "judge.py", "{checkpoint}", "16"]
    recipe = place.recipe(
        "linear",
        {"$model": {}},
        name="grid.yaml",
        parameters={"weight": 1},
        sweep={
            "axes": {"model": [str(place / "small"), str(place / "base")], "w": [1, 2]},
            "evaluate": {"command": command, "cpus": 2},
        },
        seed="$w",
    )
    recipe.write_text(recipe.read_text().replace(f"{place.path}/$model", "$model"))
    shutil.copy(judge.__file__, place / "judge.py")
    monkeypatch.chdir(place.path)
    run = machine(cluster, "--workers", 1, "--wait", 15)
    done = place.run("sweep", "grid.yaml", "out", *run, "--json")

    assert done.rc == 0, done.err
    assert len(seen(place)) == 4


# --- faults --------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_no_trial(place: Place, cluster: Nodes) -> None:
    models(place, layers=4)
    killed: list[int] = []
    lost: list[str] = []
    ended = 0

    def kill(event: Event) -> None:
        nonlocal ended
        ended += isinstance(event, UnitEnded)
        if isinstance(event, WorkerLost):
            lost.append(event.why)
        # One over its first unit, one in the middle.
        if isinstance(event, UnitBegun) and ended >= 8 * len(killed) and len(killed) < 2:
            pid = int(event.worker.rpartition(":")[2])
            if pid not in killed:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    result = raymerge.sweep(
        grid(place), place / "out", engine="ray", address=cluster.address, device="cpu",
        workers=2, memory_bytes=2**30, shard_bytes=2000, on_event=kill,
    )  # fmt: skip

    assert len(killed) == 2
    assert lost == ["died", "died"]
    assert not result.failed
    assert len(read_rows(place / "out")) == len(WEIGHTS)
    for row in read_rows(place / "out").values():
        assert row["state"] == "merged"
        (place / "alone.yaml").write_text(row["recipe"])
        own = place / "alone"
        done = place.merge(place / "alone.yaml", "alone", "--overwrite", "--shard-size", 2000)
        assert done.rc == 0
        assert shard_hashes(own) == shard_hashes(Path(row["out"])) != {}


def test_a_driver_that_is_killed_is_followed_by_another(place: Place, cluster: Nodes) -> None:
    models(place)
    recipe, out = grid(place, [i / 36 for i in range(1, 37)]), place / "out"
    run = machine(cluster, "--workers", 1, "--json", "--quiet")
    process = spawn("sweep", recipe, out, *run)
    while not read_rows(out) or not any(out.glob("*/.raymerge/*/unit-*.json")):
        assert process.poll() is None, finish(process)
        time.sleep(0.001)
    process.kill()
    finish(process)
    before = read_rows(out)
    for row in before.values():
        assert (Path(row["out"]) / INDEX).exists()

    done = finish(spawn("sweep", recipe, out, *run), 120)
    assert done.rc == 0, done
    assert done.json["resumed"] == len(before)
    rows = read_rows(out)
    assert len(rows) == 36
    assert before.items() <= rows.items()
    check_own(place, out)
