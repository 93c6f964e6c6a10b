"""Facts of the papers that real merges of real networks have to show.

That a greedy soup is no worse than its best ingredient, and where there is a barrier, is shown by
the worked sweeps (`tests/sweep/test_worked_searches.py`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recipes.sweeps import digits
from tests.conftest import Place

SEEDS = range(3)
SIZES = (64, 1024, 1024, 10)
"""Wide, also in what a unit of the second layer reads: there a tenth of the entries is enough."""
BATCH = 50
Network = dict[str, Tensor]


def new_network() -> Network:
    generator = torch.Generator().manual_seed(0)
    network = {}
    for i, (inside, outside) in enumerate(pairwise(SIZES)):
        draw = torch.randn(outside, inside, generator=generator)
        network[f"{i}.weight"] = draw * (2 / inside) ** 0.5
        network[f"{i}.bias"] = torch.zeros(outside)
    return network


def logits(network: Network, images: Tensor) -> Tensor:
    found = images
    for i in range(len(SIZES) - 1):
        found = (found if i == 0 else found.relu()) @ network[f"{i}.weight"].T
        found = found + network[f"{i}.bias"]
    return found


def train(network: Network, images: Tensor, labels: Tensor, *, epochs: int, rate: float) -> Network:
    generator = torch.Generator().manual_seed(0)
    trained = {name: tensor.clone().requires_grad_() for name, tensor in network.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=rate)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for some in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            loss = torch.nn.functional.cross_entropy(logits(trained, images[some]), labels[some])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return {name: tensor.detach() for name, tensor in trained.items()}


def shown(*, turned: bool) -> tuple[Tensor, Tensor]:
    """All digits; the first are for training."""
    images, labels = digits.load()
    ways = digits.TASKS["turned"](images) if turned else images
    return torch.tensor(ways.reshape(-1, 64).copy()), torch.tensor(labels)


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A wide network for upright digits, and one that went on with turned ones by small steps."""
    threads = torch.get_num_threads()
    # Sums in one order, whatever the machine.
    torch.set_num_threads(1)
    place = Place(tmp_path_factory.mktemp("dare"))
    seen = slice(digits.NUM_TRAIN)
    images, labels = shown(turned=False)
    base = train(new_network(), images[seen], labels[seen], epochs=4, rate=1e-3)
    images, labels = shown(turned=True)
    place.model("base", base)
    place.model("turned", train(base, images[seen], labels[seen], epochs=8, rate=5e-4))
    torch.set_num_threads(threads)
    return place


def accuracy(checkpoint: Path) -> float:
    """In percent, on turned digits that it was not trained on."""
    network = {
        k: v for path in checkpoint.glob("*.safetensors") for k, v in load_file(path).items()
    }
    images, labels = shown(turned=True)
    rest = slice(digits.NUM_TRAIN, None)
    right = logits(network, images[rest]).argmax(1) == labels[rest]
    return 100 * float(right.double().mean())


def dare(place: Place, *, seed: int, rescale: bool) -> float:
    """A tenth of the task vector's entries, drawn by DARE."""
    recipe = place.recipe(
        "dare_linear",
        ("turned",),
        base="base",
        parameters={"weight": 1, "density": 0.1, "rescale": rescale, "normalize": False},
        seed=seed,
    )
    assert place.merge(recipe, "merged", "--overwrite").rc == 0
    return accuracy(place / "merged")


def test_dare_needs_a_tenth_of_a_small_task_vector_but_not_less_than_its_scale(
    specialist: Place,
) -> None:
    """Yu et al. 2023, arXiv:2311.03099: nine of ten entries can go if the others are rescaled."""
    tuned = accuracy(specialist / "turned")
    assert tuned > 95
    assert accuracy(specialist / "base") < 50
    rescaled = [dare(specialist, seed=seed, rescale=True) for seed in SEEDS]
    dropped = [dare(specialist, seed=seed, rescale=False) for seed in SEEDS]
    assert fmean(rescaled) >= tuned - 2
    assert max(dropped) < 50
