# ruff: noqa: INP001 - a script, not a package
"""Small models for the sweeps in this folder, and the function that scores them.

    python digits.py models        trains models/base and a specialist per task, in seconds

A model is a network of one hidden layer that reads scikit-learn's digits. The base has seen a part
of them in every way of `TASKS`; each specialist goes on from there in one way only. `score` is what
the sweeps name under `evaluate: python:`.

Seeds are fixed, and the digits that score are not those that train: half of them choose (`search`),
the others are for the report (`final`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
Weights = dict[str, Floats]

TASKS: Mapping[str, Callable[[Floats], Floats]] = {
    "turned": lambda images: np.rot90(images, axes=(1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "inverted": lambda images: 1 - images,
}
"""Ways to show digits, `(count, 8, 8)` -> the same shape."""
NUM_TRAIN = 1000
"""Of the 1797 digits; of the others every second chooses."""
NUM_BASE = 250
"""Of the training digits, what the base sees."""
HIDDEN = 256
DIGITS_NAME = "digits.npz"
"""Beside the models: scikit-learn takes longer to load than a model to score."""


def score(checkpoint: str, *, split: str, subset: int | None) -> dict[str, float]:
    """Accuracy in percent, by task.

    Args:
        checkpoint: Folder of a model.
        split: `search` or `final`.
        subset: How many digits, from the first on; None for all.
    """
    weights: Weights = {}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        weights |= load_file(path)
    with np.load(Path("models") / DIGITS_NAME) as digits:
        chosen = slice(NUM_TRAIN + (split == "final"), None, 2)
        images, labels = digits["images"][chosen][:subset], digits["labels"][chosen][:subset]
    found = {task: logits(weights, show(images)).argmax(1) for task, show in TASKS.items()}
    return {task: 100 * float((guesses == labels).mean()) for task, guesses in found.items()}


def logits(weights: Mapping[str, Floats], images: Floats) -> Floats:
    """`(count, 8, 8)` -> `(count, 10)`."""
    hidden = np.maximum(_flat(images) @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    return np.asarray(hidden @ weights["head.weight"].T + weights["head.bias"], np.float32)


def train(
    weights: Weights, images: Floats, labels: NDArray[Any], *, steps: int, rate: float
) -> Weights:
    """Adam on all images at once; returns new weights."""
    weights = {name: value.copy() for name, value in weights.items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    wanted = np.eye(10, dtype=np.float32)[labels]
    for step in range(1, steps + 1):
        for name, slope in _slopes(weights, images, wanted).items():
            first[name] += 0.1 * (slope - first[name])
            second[name] += 0.01 * (slope**2 - second[name])
            mean, size = first[name] / (1 - 0.9**step), second[name] / (1 - 0.99**step)
            weights[name] -= rate * mean / (np.sqrt(size) + 1e-8)
    return weights


def _slopes(weights: Weights, images: Floats, wanted: Floats) -> Weights:
    """Of the cross-entropy."""
    inputs = _flat(images)
    hidden = np.maximum(inputs @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    found = hidden @ weights["head.weight"].T + weights["head.bias"]
    odds = np.exp(found - found.max(1, keepdims=True))
    error = (odds / odds.sum(1, keepdims=True) - wanted) / len(wanted)
    back = error @ weights["head.weight"] * (hidden > 0)
    return {
        "hidden.weight": back.T @ inputs,
        "hidden.bias": back.sum(0),
        "head.weight": error.T @ hidden,
        "head.bias": error.sum(0),
    }


def _flat(images: Floats) -> Floats:
    return np.ascontiguousarray(images).reshape(len(images), -1)


def new_weights() -> Weights:
    """Of a model that has seen nothing."""
    draw = np.random.default_rng(0)
    return {
        "hidden.weight": draw.normal(0, 0.15, (HIDDEN, 64)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "head.weight": draw.normal(0, 0.08, (10, HIDDEN)).astype(np.float32),
        "head.bias": np.zeros(10, np.float32),
    }


def make(folder: Path) -> None:
    """Train the base and its specialists, and save them."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    images, labels = (found.images / 16).astype(np.float32)[order], found.target[order]
    few = images[:NUM_BASE]
    shown = np.concatenate([show(few) for show in TASKS.values()])
    often = np.tile(labels[:NUM_BASE], len(TASKS))
    base = train(new_weights(), shown, often, steps=40, rate=3e-3)
    models = {"base": base}
    for task, show in TASKS.items():
        models[task] = train(
            base, show(images[:NUM_TRAIN]), labels[:NUM_TRAIN], steps=20, rate=1e-3
        )
    for name, weights in models.items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    np.savez(folder / DIGITS_NAME, images=images, labels=labels)


def main() -> None:
    """Make the models in a folder."""
    parser = argparse.ArgumentParser(description="Train small models for the sweeps beside this.")
    parser.add_argument("folder", type=Path, help="models, for the recipes as they are")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
