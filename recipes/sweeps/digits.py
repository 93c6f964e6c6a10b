# ruff: noqa: INP001 - a script, not a package
"""Small models for the sweeps in this folder, and the functions that score them.

    python digits.py models        trains all of them, in seconds

A model is a network of one hidden layer that reads scikit-learn's digits.

base                       has seen a part of them in every way of `TASKS`
turned, mirrored, inverted   specialists: each goes on from the base in one way only
run-1 ... run-8            each goes on from the base in every way, with other digits and rates
apart-1, apart-2           trained in every way from two different starts

`score` and `likelihood` are what the sweeps name under `evaluate: python:`.

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
NUM_RUNS = 8
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
    weights, (images, labels) = read(Path(checkpoint)), examples(split, subset)
    return {
        task: 100 * float((logits(weights, show(images)).argmax(1) == labels).mean())
        for task, show in TASKS.items()
    }


def likelihood(checkpoint: str, *, split: str, subset: int | None) -> dict[str, float]:
    """Mean log-likelihood of the labels over all tasks: finer than an accuracy.

    Args:
        checkpoint: Folder of a model.
        split: `search` or `final`.
        subset: How many digits, from the first on; None for all.
    """
    weights, (images, labels) = read(Path(checkpoint)), examples(split, subset)
    found = [logits(weights, show(images)).astype(np.float64) for show in TASKS.values()]
    likely = [each - np.log(np.exp(each).sum(1, keepdims=True)) for each in found]
    own = np.arange(len(labels)), labels
    return {"likelihood": float(np.mean([each[own] for each in likely]))}


def read(checkpoint: Path) -> Weights:
    """Weights of a model."""
    weights: Weights = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def examples(split: str, subset: int | None = None) -> tuple[Floats, NDArray[Any]]:
    """Images and labels that no model was trained on."""
    with np.load(Path("models") / DIGITS_NAME) as digits:
        chosen = slice(NUM_TRAIN + (split == "final"), None, 2)
        return digits["images"][chosen][:subset], digits["labels"][chosen][:subset]


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


def new_weights(seed: int = 0, *, hidden: int = HIDDEN) -> Weights:
    """Of a model that has seen nothing."""
    draw = np.random.default_rng(seed)
    return {
        "hidden.weight": draw.normal(0, 0.15, (hidden, 64)).astype(np.float32),
        "hidden.bias": np.zeros(hidden, np.float32),
        "head.weight": draw.normal(0, 0.08, (10, hidden)).astype(np.float32),
        "head.bias": np.zeros(10, np.float32),
    }


def load() -> tuple[Floats, NDArray[Any]]:
    """All digits, always in the same order: the first are for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    return (found.images / 16).astype(np.float32)[order], found.target[order]


def in_every_way(images: Floats, labels: NDArray[Any]) -> tuple[Floats, NDArray[Any]]:
    """Digits as each task shows them, one task after the other."""
    return np.concatenate([show(images) for show in TASKS.values()]), np.tile(labels, len(TASKS))


def make(folder: Path) -> None:
    """Train all models, and save them."""
    images, labels = load()
    few = in_every_way(images[:NUM_BASE], labels[:NUM_BASE])
    base = train(new_weights(), *few, steps=40, rate=3e-3)
    models = {"base": base, **_runs(base, images, labels)}
    for task, show in TASKS.items():
        shown = show(images[:NUM_TRAIN])
        models[task] = train(base, shown, labels[:NUM_TRAIN], steps=20, rate=1e-3)
    more = in_every_way(images[: 2 * NUM_BASE], labels[: 2 * NUM_BASE])
    for seed in (1, 2):
        models[f"apart-{seed}"] = train(new_weights(seed), *more, steps=60, rate=3e-3)
    for name, weights in models.items():
        save(weights, folder / name)
    np.savez(folder / DIGITS_NAME, images=images, labels=labels)


def save(weights: Weights, path: Path) -> None:
    """A model as a checkpoint."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _runs(base: Weights, images: Floats, labels: NDArray[Any]) -> dict[str, Weights]:
    """Fine-tunes as a search over settings leaves them."""
    draw = np.random.default_rng(1)
    found = {}
    for i in range(1, NUM_RUNS + 1):
        chosen = draw.choice(NUM_TRAIN, NUM_BASE, replace=False)
        rate, steps = float(10 ** draw.uniform(-3.5, -2.3)), int(draw.integers(20, 40))
        some = in_every_way(images[chosen], labels[chosen])
        found[f"run-{i}"] = train(base, *some, steps=steps, rate=rate)
    return found


def main() -> None:
    """Make the models in a folder."""
    parser = argparse.ArgumentParser(description="Train small models for the sweeps beside this.")
    parser.add_argument("folder", type=Path, help="models, for the recipes as they are")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
