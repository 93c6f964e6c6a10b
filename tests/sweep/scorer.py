"""An evaluator of small float32 checkpoints that starts in no time, and fails when it is told to.

    python scorer.py CHECKPOINT SUBSET SPLIT

Scores are how near the first tensor is to that of two models beside this script: `a` and `b`. Every
call adds a line to calls.txt there. `fail.json` there may have `{"part of a path": what}`: `crash`,
`hang`, `rubbish`, `nan`, `even` (both scores are 50), `half` (there is one).
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from pathlib import Path

HERE = Path(__file__).parent


def values(checkpoint: Path, count: int) -> array[float]:
    """The first numbers of a checkpoint."""
    path = min(checkpoint.glob("*.safetensors"))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    start, _ = next(
        spec["data_offsets"] for name, spec in sorted(header.items()) if name != "__metadata__"
    )
    found = array("f")
    found.frombytes(raw[8 + length + start :][: 4 * count])
    return found


def main() -> None:
    """Print the scores."""
    checkpoint, subset, split = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with (HERE / "calls.txt").open("a") as calls:
        calls.write(f"{checkpoint.name} {subset} {split}\n")
    told = HERE / "fail.json"
    fails = json.loads(told.read_text()) if told.exists() else {}
    what = next((how for part, how in fails.items() if part in str(checkpoint)), None)
    if what == "crash":
        raise SystemExit("out of luck")
    if what == "hang":
        time.sleep(60)
    if what == "rubbish":
        sys.stdout.write("all is well\n")
        return
    if what == "nan":
        sys.stdout.write('{"like_a": NaN, "like_b": 1}\n')
        return
    if what == "even":
        sys.stdout.write('{"like_a": 50, "like_b": 50}\n')
        return
    count = 64 if subset == "all" else int(subset)
    own = values(checkpoint, count)
    scores = {}
    for name in "ab":
        model = values(HERE / name, count)
        apart = sum((x - y) ** 2 for x, y in zip(own, model, strict=True)) ** 0.5
        scores[f"like_{name}"] = 100 - 1000 * apart / count**0.5
    if what == "half":
        del scores["like_a"]
    sys.stdout.write(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
