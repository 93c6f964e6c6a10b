"""Kill a merge after every durable event: the checkpoint is whole or absent, and a rerun ends it.

A helper process does one merge to compile and import everything, and then forks a child for each
event. The child counts what it asks of the file system and kills itself there; a write it dies in
is torn, half of it done. Forked, and not started, because a start costs a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tests.conftest import Place

INDEX = "model.safetensors.index.json"
TENSORS_A_UNIT = 4
SHARD_BYTES = 4000
EVENTS = (
    "mkdir", "rmdir", "unlink", "link", "rename", "replace", "ftruncate", "posix_fallocate",
    "pwrite", "write", "fsync", "fdatasync",
)  # fmt: skip
"""Functions of `os` through which everything durable goes."""


# --- in the child --------------------------------------------------------------------------------


def kill_at(number: int) -> None:
    """Have this process die in place of event `number`, counted from 0."""
    events = iter(range(number))
    lock = threading.Lock()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            with lock:
                if next(events, None) is None:
                    if name == "pwrite":
                        descriptor, data, *rest = arguments
                        call(descriptor, memoryview(data)[: len(data) // 2], *rest)
                    os.kill(os.getpid(), SIGKILL)
            return call(*arguments, **options)

        return counting

    for name in EVENTS:
        setattr(os, name, counted(name, getattr(os, name)))


def forked(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` returns, or `{"killed": True}`, of a child of this process."""
    assert threading.active_count() == 1, threading.enumerate()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Bound before anything is counted: the answer is no event of the merge.
        write, leave = os.write, os._exit
        try:
            answer = act()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = {"error": repr(error)}
        write(writing, json.dumps(answer).encode())
        leave(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == SIGKILL
    found: dict[str, Any] = {"killed": True} if killed else json.loads(told)
    return found


def trials(recipe: Path, folder: Path, *, overwrite: bool) -> Iterator[dict[str, Any]]:
    """Kill at event 0, 1, ... until a merge comes to its end; one record each."""
    import raymerge
    from raymerge.plan import units

    # Several units share a shard without tensors of 64 MiB.
    units.MAX_UNIT_TENSORS = TENSORS_A_UNIT

    def merge(out: Path) -> dict[str, Any]:
        result = raymerge.merge(
            recipe, out, engine="local", device="cpu", workers=1, shard_bytes=SHARD_BYTES,
            overwrite=overwrite,
        )  # fmt: skip
        return {
            "shards": {shard.name: shard.sha256 for shard in result.shards},
            "resumed": result.resumed_units,
        }

    if overwrite:
        # What another recipe wrote there: more shards, of other names.
        other = recipe.with_name("other.yaml")
        run = {"engine": "local", "device": "cpu", "workers": 1}

    def before(out: Path) -> None:
        if overwrite:
            raymerge.merge(other, out, shard_bytes=2500, **run)  # type: ignore[arg-type]

    reference = forked(lambda: merge(folder / "reference"))
    merge(folder / "warm")
    yield reference | {"files": listing(folder / "reference")}
    number, died = 0, True
    while died:
        out = folder / str(number)
        before(out)

        def dying(out: Path = out, number: int = number) -> dict[str, Any]:
            kill_at(number)
            return merge(out)

        died = "killed" in forked(dying)
        whole = (out / INDEX).exists()
        record = {
            "event": number,
            "whole": whole,
            "sound": raymerge.verify(out).ok if whole else None,
            "rerun": forked(lambda out=out: merge(out)),  # type: ignore[misc]
            "files": listing(out),
            "problems": raymerge.verify(out).problems,
        }
        yield record
        number += 1


def listing(out: Path) -> list[str]:
    """Everything below `out`."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def main() -> None:
    """Print a JSON line for each trial: RECIPE FOLDER [overwrite]."""
    recipe, folder, *rest = sys.argv[1:]
    with suppress(BrokenPipeError):
        for record in trials(Path(recipe), Path(folder), overwrite=bool(rest)):
            sys.stdout.write(json.dumps(record) + "\n")


# --- in the test ---------------------------------------------------------------------------------


def killed_everywhere(recipe: Path, folder: Path, *rest: str) -> list[dict[str, Any]]:
    folder.mkdir()
    program = "from tests.e2e.test_killed import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", program, str(recipe), str(folder), *rest],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_killed_at_any_event_a_merge_is_whole_or_absent_and_a_rerun_ends_it(
    place: Place,
) -> None:
    place.llamas(layers=1)
    recipe = place.any_recipe("ties", trim="model")
    reference, *records = killed_everywhere(recipe, place / "out")

    assert len(records) > 60
    assert len(reference["shards"]) > 2
    for record in records:
        assert record["sound"] in (None, True), record
        assert record["rerun"].get("shards") == reference["shards"], record
        assert record["files"] == reference["files"], record
        assert record["problems"] == [], record
    # Killed early nothing is there to go on from, killed late every unit is.
    resumed = [record["rerun"]["resumed"] for record in records]
    assert resumed[0] == 0
    assert len(set(resumed)) > 3
    assert resumed[-1] == max(resumed)
    # Absent up to one event, whole from there on.
    whole = [record["whole"] for record in records]
    assert whole == sorted(whole)
    assert whole[-1]


def test_killed_at_any_event_an_overwriting_merge_leaves_the_old_the_new_or_nothing(
    place: Place,
) -> None:
    place.llamas(layers=1)
    recipe = place.any_recipe("linear")
    place.any_recipe("ties").rename(place / "other.yaml")
    reference, *records = killed_everywhere(recipe, place / "out", "overwrite")

    for record in records:
        assert record["sound"] in (None, True), record
        assert record["rerun"].get("shards") == reference["shards"], record
        assert record["files"] == reference["files"], record
        assert record["problems"] == [], record
