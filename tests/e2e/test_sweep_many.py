"""Two hundred trials in one command: a row each, and a driver that does not grow with them."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

from pyarrow import parquet

from raymerge.sweep.rounds import MAX_TRIALS
from tests.conftest import Place, finish, shard_hashes, spawn

TRIALS = 200
EARLY = 20
MOST_GROWN_BYTES = 150_000
"""A trial, from the twentieth to the last. 48,000 to 58,000 were measured, nearly all of it in the
first four rounds, in which the heap of the process finds its size."""
MOST_KEPT_BYTES = 15_000
"""A trial, in that of the later rounds in which the driver grows least. Less than 5,600 were
measured in five runs; 48,000 where the driver keeps the plans of trials that are done."""


def anonymous_bytes(process: subprocess.Popen[str]) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def watched(process: subprocess.Popen[str]) -> list[int]:
    """A driver's memory as it tells of each trial."""
    assert process.stderr is not None
    return [anonymous_bytes(process) for line in process.stderr if "  merged  in" in line]


def sweep(place: Place) -> Path:
    place.llamas(layers=10, hidden=32)
    axes = {"w": {"linspace": [0.01, 1, TRIALS // 2]}, "lambda": [0.5, 1]}
    return place.recipe(
        "ties",
        base="base",
        parameters={"weight": "$w", "density": 0.5, "lambda": "$lambda"},
        sweep={"axes": axes},
    )


def check(place: Place, samples: list[int]) -> None:
    rows = parquet.read_table(place / "out" / "raymerge-trials.parquet").to_pylist()
    assert len(rows) == len({row["name"] for row in rows}) == len(samples) == TRIALS
    assert {row["state"] for row in rows} == {"merged"}
    for row in rows[:: TRIALS - 1]:
        (place / "alone.yaml").write_text(row["recipe"])
        assert place.merge(place / "alone.yaml", "alone", "--overwrite").rc == 0
        assert shard_hashes(place / "alone") == shard_hashes(Path(row["out"]))
    peaks = [max(samples[i : i + MAX_TRIALS]) for i in range(0, TRIALS, MAX_TRIALS)]
    assert (max(samples) - samples[EARLY]) / (TRIALS - EARLY) < MOST_GROWN_BYTES, peaks
    # One round alone may find the heap too small.
    kept = min(after - before for before, after in pairwise(peaks[2:-1]))
    assert kept / MAX_TRIALS < MOST_KEPT_BYTES, peaks


def test_the_driver_does_not_grow_with_its_trials(place: Place) -> None:
    process = spawn(
        "sweep", sweep(place), place / "out", "--engine", "local", "--device", "cpu", "--workers", 2
    )
    samples = watched(process)
    assert finish(process).rc == 0
    check(place, samples)
