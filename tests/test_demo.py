"""`make demo`, with one epoch of training in place of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

DEMO = Path(__file__).parent.parent / "recipes" / "demo.py"
ROWS = ("base", "turned", "mirrored", "inverted", "linear", "ties", "dare_ties")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEMO, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_merges_verifies_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    done = run("--quick", "--keep", folder)

    assert done.returncode == 0, done.stderr
    for merge in ROWS[4:]:
        assert f"merged/{merge}: ok, " in done.stdout
    table = done.stdout.split("accuracy, %")[1].splitlines()[1:8]
    assert [row.split()[0] for row in table] == list(ROWS)
    assert all(0 <= float(cell) <= 100 for row in table for cell in row.split()[1:])
    assert "Over the three tasks the best merge" in done.stdout

    # The sources are what `save_pretrained` makes of any model.
    shards = sorted((folder / "models" / "base").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert (folder / "models" / "base" / "model.safetensors.index.json").exists()
    with safe_open(shards[0], "pt") as shard:
        assert shard.metadata() == {"format": "pt"}


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    done = run("--keep", tmp_path)
    assert done.returncode == 2
    assert "name a folder that does not" in done.stderr
