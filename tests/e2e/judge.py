"""An evaluator that notes where it runs, and takes its time.

    python judge.py CHECKPOINT SECONDS

The score is a figure of the weights. What it saw goes to seen.jsonl beside this script.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def parent_of(pid: int) -> int:
    """The process that started another; of a Ray worker its node's raylet."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def score(
    checkpoint: str, *, split: str, subset: int | None, seconds: float = 0.2
) -> dict[str, float]:
    """Scores of a checkpoint, after some seconds."""
    began = time.time()
    del split, subset
    [weights] = Path(checkpoint).glob("*.safetensors")
    total = sum(weights.read_bytes())
    time.sleep(seconds)
    note = {
        "began": began,
        "ended": time.time(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "grandparent": parent_of(os.getppid()),
        "parent": os.getppid(),
    }
    with (HERE / "seen.jsonl").open("a") as seen:
        seen.write(json.dumps(note) + "\n")
    return {"weights": total}


if __name__ == "__main__":
    found = score(sys.argv[1], split="", subset=None, seconds=float(sys.argv[2]))
    sys.stdout.write(json.dumps(found))
