"""What happens to a sweep from outside: a disk that fills up, a driver that is killed.

Whatever is done to it, a trial that was finished stays so, no row says what is not there, and the
same command again ends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet

import raymerge
from raymerge.sweep.ledger import read_rows
from tests.conftest import Done, Place, finish, shard_hashes, spawn
from tests.e2e.test_interrupted import INDEX, small_disk

MACHINE = ("--engine", "local", "--device", "cpu", "--workers", 2, "--json")
MANY = 40
"""Trials: more than are merged with one read."""


def grid(place: Place, weights: list[float], *, width: int = 16) -> Path:
    """A sweep over models of two hundred tensors."""
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        place.model(
            name,
            {
                f"model.layers.{i}.weight": torch.randn(32, width, generator=generator).bfloat16()
                for i in range(200)
            },
        )
    return place.recipe(
        "ties",
        base="base",
        name="grid.yaml",
        parameters={"weight": "$w", "density": 0.5},
        sweep={"axes": {"w": weights}},
    )


def whole(out: Path) -> set[str]:
    """Trials whose checkpoints are there."""
    return {path.parent.name for path in out.glob(f"*/{INDEX}")}


def check_rows(place: Place, out: Path) -> Mapping[str, Mapping[str, Any]]:
    """The rows: each merged one stands for a checkpoint that is what its own merge is."""
    rows = read_rows(out)
    for row in rows.values():
        if row["state"] != "merged":
            assert row["name"] not in whole(out)
            continue
        assert raymerge.verify(row["out"]).ok
        (place / "alone.yaml").write_text(row["recipe"])
        assert place.merge(place / "alone.yaml", "alone", "--overwrite").rc == 0
        assert shard_hashes(place / "alone") == shard_hashes(Path(row["out"])) != {}
    return rows


def again(recipe: Path, out: Path) -> Done:
    return finish(spawn("sweep", recipe, out, *MACHINE, "--quiet"), 120)


# --- a disk that is full -------------------------------------------------------------------------

TRIAL_BYTES = 220_000
"""More than a trial of `grid` takes with all that is beside its weights."""


def test_trials_for_which_there_is_no_room_fail_and_the_others_are_whole(
    place: Place, tmp_path: Path
) -> None:
    recipe = grid(place, [0.2, 0.4, 0.6, 0.8, 1.0], width=160)
    # Of five trials three fit, with the ledger and the report of the sweep.
    with small_disk(tmp_path / "disk", f"size={30 * TRIAL_BYTES + 1_200_000}") as disk:
        out = disk / "out"
        first = again(recipe, out)

        assert first.rc == 4, first
        failed = [trial for trial in first.json["trials"] if trial["state"] == "failed"]
        assert 1 <= len(failed) <= 3
        for trial in failed:
            assert "bytes) free, of which other trials take" in trial["error"]
        rows = check_rows(place, out)
        assert len(rows) == 5
        assert len(whole(out)) == 5 - len(failed)

        more = ["mount", "-o", "remount,size=40M", str(disk)]
        subprocess.run(more, check=True)
        second = again(recipe, out)
        assert second.rc == 0, second
        assert second.json["resumed"] == 5 - len(failed)
        now = check_rows(place, out)
        assert {row["state"] for row in now.values()} == {"merged"}
        # What was finished was left alone.
        for name in rows.keys() - {trial["name"] for trial in failed}:
            assert now[name] == rows[name]


def stopped(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """Return once the sweep is stopped, in the middle of what it does when something is so."""
    while not when():
        assert process.poll() is None, finish(process)
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    # It runs on for a moment: the signal is taken when its threads next enter the kernel.
    os.waitpid(process.pid, os.WUNTRACED)


def test_a_disk_that_fills_up_ends_the_sweep_and_what_was_finished_stays(
    place: Place, tmp_path: Path
) -> None:
    """It fills up to the last byte, so that the ledger cannot be written either."""
    recipe = grid(place, [i / MANY for i in range(1, MANY + 1)])
    with small_disk(tmp_path / "disk", f"size={2 * MANY * TRIAL_BYTES}") as disk:
        out, filler = disk / "out", disk / "filler"
        process = spawn("sweep", recipe, out, *MACHINE, "--quiet")
        stopped(
            process,
            lambda: any(out.glob("*/.raymerge/*/unit-*.json")) and len(rows_there(out)) >= 1,
        )
        before = rows_there(out)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(b"\0" * free)
        process.send_signal(signal.SIGCONT)
        done = finish(process, 120)

        # Trials that it met fail, or it meets the ledger, which ends all.
        assert done.rc in {3, 4}, done
        assert "No space left" in done.out
        now = rows_there(out)
        for name, row in before.items():
            assert now[name] == row
        filler.unlink()
        ended = again(recipe, out)
        assert ended.rc == 0, ended
        rows = read_rows(out)
        assert len(rows) == MANY
        assert {row["state"] for row in rows.values()} == {"merged"}
        for name, row in before.items():
            assert rows[name] == row
        check_some(place, out)


def rows_there(out: Path) -> dict[str, Any]:
    """What a ledger holds, also while a sweep writes it."""
    try:
        return dict(read_rows(out))
    except FileNotFoundError:
        return {}


def check_some(place: Place, out: Path) -> None:
    """Some of the trials are what their own merges are."""
    rows = list(read_rows(out).values())
    assert whole(out) == {row["name"] for row in rows}
    for row in rows[:: len(rows) // 4]:
        (place / "alone.yaml").write_text(row["recipe"])
        assert place.merge(place / "alone.yaml", "alone", "--overwrite").rc == 0
        assert shard_hashes(place / "alone") == shard_hashes(Path(row["out"])) != {}


# --- a driver that is killed ---------------------------------------------------------------------


def test_killed_after_some_trials_a_sweep_goes_on_with_the_others(place: Place) -> None:
    recipe, out = grid(place, [i / MANY for i in range(1, MANY + 1)]), place / "out"
    process = spawn("sweep", recipe, out, *MACHINE, "--quiet")
    while not rows_there(out) or not any(out.glob("*/.raymerge/claim.json")):
        assert process.poll() is None, finish(process)
        time.sleep(0.001)
    process.kill()
    finish(process)
    before = rows_there(out)
    assert before
    for row in before.values():
        assert (Path(row["out"]) / INDEX).exists()

    ended = again(recipe, out)
    assert ended.rc == 0, ended
    assert ended.json["resumed"] == len(before)
    rows = read_rows(out)
    assert len(rows) == MANY
    assert before.items() <= rows.items()
    check_some(place, out)
    table = parquet.read_table(out / "raymerge-trials.parquet").to_pylist()
    assert len(table) == MANY
    assert not list((out / ".raymerge-sweep").glob("*.parquet"))
