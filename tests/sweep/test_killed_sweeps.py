"""Kill a sweep after one durable event or another: what it kept is whole, and a rerun ends it.

As in e2e/test_killed.py a helper process forks a child for each event, which dies there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

import raymerge
from raymerge.options import RunOptions
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place
from tests.e2e.test_killed import INDEX, forked, kill_at

LOCAL: RunOptions = {"engine": "local", "device": "cpu", "workers": 1}
SCORE = 'set -- $(cksum < "$0/model-00001-of-00001.safetensors"); echo "{\\"sum\\": $1}"'
"""A number that depends on every byte, by a program that starts at once."""
STRIDE = 17
"""Events from one kill to the next."""
NUM_EVALUATIONS = 3 + 2 + 1


# --- in the child --------------------------------------------------------------------------------


def swept(recipe: Path, out: Path, *, linked: bool) -> dict[str, Any]:
    """What a sweep comes to."""
    if not linked:
        # As it is between two file systems.
        def refuse(*_: object, **__: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        os.link = refuse
    result = raymerge.sweep(recipe, out, **LOCAL)
    return {one.name: [one.state, one.rank, one.score, one.error] for one in result.trials}


def found(out: Path, scratch: Path) -> dict[str, Any]:
    """What lies there: the kept, whole; every evaluation; scratch."""
    kept = [path.parent for path in out.glob(f"*/{INDEX}")]
    names = (str(path.relative_to(out)) for path in out.rglob("*"))
    rows = parquet.read_table(out / "raymerge-evaluations.parquet").to_pylist()
    return {
        "problems": [problem for path in kept for problem in raymerge.verify(path).problems],
        # But for the report: which charts it has depends on what the last run had to read.
        "files": [name for name in sorted(names) if not name.startswith("report")],
        "evaluations": sorted((row["trial"], row["split"], str(row["subset"])) for row in rows),
        "errors": [row["error"] for row in rows if row["error"]],
        "scratch": scratch.exists(),
    }


def records(folder: Path, *, linked: bool) -> Iterator[dict[str, Any]]:
    """Kill at every so manieth event until a sweep comes to its end; one record each."""
    recipe, scratch = folder / "sweep.yaml", folder / "scratch"
    raymerge.sweep(folder / "warm.yaml", folder / "warm", **LOCAL)
    reference = folder / "reference"
    yield {"rerun": forked(lambda: swept(recipe, reference, linked=linked))} | found(
        reference, scratch
    )
    number, died = 0, True
    while died:
        out = folder / str(number)

        def dying(out: Path = out, number: int = number) -> dict[str, Any]:
            kill_at(number)
            return swept(recipe, out, linked=linked)

        died = "killed" in forked(dying)
        whole = [path.parent for path in out.glob(f"*/{INDEX}")]
        torn = [problem for path in whole for problem in raymerge.verify(path).problems]
        rerun = forked(lambda out=out: swept(recipe, out, linked=linked))  # type: ignore[misc]
        yield {"event": number, "torn": torn, "rerun": rerun} | found(out, scratch)
        number += STRIDE


def main() -> None:
    """Print a JSON line for each kill: FOLDER [linked]."""
    folder, *rest = sys.argv[1:]
    for record in records(Path(folder), linked=bool(rest)):
        sys.stdout.write(json.dumps(record) + "\n")


# --- in the test ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [["linked"], []], ids=["one file system", "two file systems"])
def test_killed_at_any_event_a_sweep_is_ended_by_a_rerun(place: Place, how: list[str]) -> None:
    base = tiny_llama_tensors(0, layers=1, dtype=torch.float32)
    for name, tensors in {"a": base, "b": fine_tune(base, 1)}.items():
        place.model(name, tensors, config=llama_config(tensors))
    axes = {"axes": {"w": [0.25, 0.5, 0.75]}}
    choice = {
        "evaluate": {"command": ["sh", "-c", f"{SCORE} # {{subset}} {{split}}", "{checkpoint}"]},
        "subset": [8],
        "split": {"search": "dev", "final": "test"},
        "keep": 1,
        "scratch": str(place / "scratch"),
    }
    for name, block in {"warm.yaml": axes, "sweep.yaml": axes | choice}.items():
        models = {"b": {"weight": "$w"}}
        place.recipe("task_arithmetic", models, base="a", name=name, sweep=block)
    program = "from tests.sweep.test_killed_sweeps import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", program, str(place.path), *how],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    reference, *killed = map(json.loads, process.stdout.splitlines())

    assert sorted(state for state, *_ in reference["rerun"].values()) == [
        "kept",
        "removed",
        "removed",
    ]
    assert len(reference["evaluations"]) == NUM_EVALUATIONS
    assert len(killed) > 8
    for record in killed:
        assert record["torn"] == [], record
        # The same trials kept, the same files, every evaluation made once.
        for key in ("rerun", "problems", "evaluations", "errors", "scratch"):
            assert record[key] == reference[key], (key, record)
        assert record["files"] == reference["files"], record["event"]
    assert not reference["scratch"]
