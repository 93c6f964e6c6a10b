"""An evaluator: what a small network makes of handwritten digits. Starts in a fifth of a second.

    python score.py CHECKPOINT SPLIT

Prints accuracy in percent on digits that are upright (`plain`), turned (`math`) and mirrored
(`code`), and the mean log-likelihood of the upright ones. Reads digits.npz beside this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
TASKS: Mapping[str, Callable[[Array], Array]] = {
    "plain": lambda images: images,
    "math": lambda images: np.rot90(images, axes=(1, 2)),
    "code": lambda images: images[:, :, ::-1],
}
"""Ways to show digits, `(count, 8, 8)` -> the same shape."""


def weights_of(checkpoint: Path) -> dict[str, Array]:
    """Every tensor of a checkpoint, float32 or bfloat16, as float32."""
    return dict(pair for path in checkpoint.glob("*.safetensors") for pair in _tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, Array]]:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, spec in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = spec["data_offsets"]
            stored = raw[start + first : start + last]
            flat = (
                np.frombuffer(stored, np.float32)
                if spec["dtype"] == "F32"
                else (np.frombuffer(stored, np.uint16).astype(np.uint32) << 16).view(np.float32)
            )
            yield name, flat.reshape(spec["shape"])


def logits(weights: Mapping[str, Array], images: Array) -> Array:
    """What a network of layers with ReLU between them says of images."""
    found = images.reshape(len(images), -1)
    number = len({name.split(".")[2] for name in weights if ".layers." in name})
    for i in range(number):
        layer = f"model.layers.{i}"
        found = np.maximum(found @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
    return found @ weights["head.weight"].T + weights["head.bias"]


def scores(
    weights: Mapping[str, Array], digits: Mapping[str, Array], split: str
) -> dict[str, float]:
    """Scores by task; higher is better."""
    images, labels = digits[f"{split}_images"], digits[f"{split}_labels"].astype(np.int64)
    found = {}
    for task, show in TASKS.items():
        said = logits(weights, show(images)).astype(np.float64)
        found[task] = 100 * float(np.mean(said.argmax(1) == labels))
        if task == "plain":
            said -= said.max(1, keepdims=True)
            likely = said - np.log(np.exp(said).sum(1, keepdims=True))
            found["likelihood"] = float(likely[np.arange(len(labels)), labels].mean())
    return found


def main() -> None:
    """Print the scores."""
    with np.load(Path(__file__).with_name("digits.npz")) as digits:
        found = scores(weights_of(Path(sys.argv[1])), digits, sys.argv[2])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
