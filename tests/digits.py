"""Small networks trained on scikit-learn's handwritten digits, in a second or two each."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from tests.checkpoints import write_checkpoint
from tests.sweep import score_digits
from tests.sweep.score_digits import TASKS

Array = NDArray[np.float32]
Network = dict[str, Tensor]
SPLITS = {"train": 1200, "search": 300, "final": 297}
"""Of the 1797 digits: to learn from, to choose by, to report on."""
BATCH = 50


def digits() -> dict[str, Array]:
    """Images, 0 to 1, and labels of each split: always the same."""
    found = load_digits()
    images = (found.images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    arrays, first = {}, 0
    for name, count in SPLITS.items():
        some = order[first : first + count]
        arrays[f"{name}_images"] = images[some]
        arrays[f"{name}_labels"] = found.target[some].astype(np.float32)
        first += count
    return arrays


def shown(data: dict[str, Array], *tasks: str, count: int = 1200, first: int = 0) -> list[Tensor]:
    """Training images and labels in the way of each task, one task after the other."""
    some = slice(first, first + count)
    images = [TASKS[task](data["train_images"][some]).reshape(-1, 64) for task in tasks]
    labels = torch.tensor(data["train_labels"][some]).long().repeat(len(tasks))
    return [torch.tensor(np.concatenate(images)), labels]


def new_network(seed: int, *, width: int = 128, layers: int = 3) -> Network:
    """An untrained network of layers of one width, and a head."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [64, *[width] * layers, 10]
    names = [*(f"model.layers.{i}" for i in range(layers)), "head"]
    network = {}
    for name, inside, outside in zip(names, sizes[:-1], sizes[1:], strict=True):
        scale = (2 / inside) ** 0.5
        network[f"{name}.weight"] = torch.randn(outside, inside, generator=generator) * scale
        network[f"{name}.bias"] = torch.zeros(outside)
    return network


def train(
    network: Network,
    data: Sequence[Tensor],
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    decay: float = 0.0,
) -> Network:
    """The network after some epochs of AdamW; the one given stays as it is."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    trained = {name: tensor.clone().requires_grad_() for name, tensor in network.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=decay)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            loss = torch.nn.functional.cross_entropy(
                _logits(trained, images[chosen]), labels[chosen]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return {name: tensor.detach() for name, tensor in trained.items()}


def _logits(network: Network, images: Tensor) -> Tensor:
    found = images
    for name in list(network)[:-2:2]:
        bias = network[name.replace("weight", "bias")]
        found = torch.relu(found @ network[name].T + bias)
    return found @ network["head.weight"].T + network["head.bias"]


def scores_of(network: Network, data: dict[str, Array], split: str) -> dict[str, float]:
    """What the evaluator says of a network."""
    arrays = {name: tensor.numpy() for name, tensor in network.items()}
    return score_digits.scores(arrays, data, split)


def write_network(folder: Path, network: Network) -> None:
    """A network as a checkpoint of two shards and more."""
    layers = len(network) // 2 - 1
    config = {"architectures": ["DigitsNetwork"], "num_hidden_layers": layers}
    write_checkpoint(folder, network, config=config, max_shard_bytes=100_000)


def write_evaluator(folder: Path, data: dict[str, Array]) -> None:
    """`score.py` and what it reads."""
    np.savez(folder / "digits.npz", **data)
    shutil.copy(score_digits.__file__, folder / "score.py")


def base_and_specialists(data: dict[str, Array]) -> dict[str, Network]:
    """A base that has seen a few digits in both ways, and one that goes on with each way."""
    base = train(new_network(0), shown(data, "math", "code", count=100), epochs=10, rate=2e-3)
    tuned = {task: train(base, shown(data, task), epochs=6, rate=1e-3) for task in ("math", "code")}
    return {"base": base, **tuned}


def runs(data: dict[str, Array], number: int = 8) -> dict[str, Network]:
    """Fine-tunes of one network on upright digits, by other rates, decays, orders and digits."""
    base = train(new_network(1), shown(data, "plain", count=300), epochs=8, rate=2e-3)
    drawn = np.random.default_rng(1)
    found = {}
    for i in range(1, number + 1):
        found[f"run-{i}"] = train(
            base,
            shown(data, "plain", first=int(drawn.integers(0, 600)), count=600),
            epochs=4,
            rate=float(10 ** drawn.uniform(-3.5, -2.2)),
            decay=float(drawn.choice([0.0, 0.1])),
            seed=i,
        )
    return found


def apart(data: dict[str, Array]) -> dict[str, Network]:
    """Two networks trained on the same digits from different starts."""
    plain = shown(data, "plain")
    return {
        f"apart-{seed}": train(new_network(seed), plain, epochs=10, rate=2e-3, seed=seed)
        for seed in (1, 2)
    }
