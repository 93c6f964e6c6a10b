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
        "node": os.environ.get("RAY_NODE_ID"),
        "parent": os.getppid(),
    }
    with (HERE / "seen.jsonl").open("a") as seen:
        seen.write(json.dumps(note) + "\n")
    return {"weights": total}


if __name__ == "__main__":
    found = score(sys.argv[1], split="", subset=None, seconds=float(sys.argv[2]))
    sys.stdout.write(json.dumps(found))
