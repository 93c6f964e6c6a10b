"""Facts of the papers that real merges of real networks have to show.

That a greedy soup is no worse than its best ingredient, and where there is a barrier, is shown by
the worked sweeps (`tests/sweep/test_worked_searches.py`).
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import torch

from tests import digits
from tests.conftest import Place
from tests.sweep.score_digits import scores, weights_of

SEEDS = range(3)


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A wide network for upright digits, and one that went on with turned ones by small steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = Place(tmp_path_factory.mktemp("dare"))
    data = digits.digits()
    start = digits.new_network(0, width=1024, layers=2)
    base = digits.train(start, digits.shown(data, "plain"), epochs=4, rate=1e-3)
    tuned = digits.train(base, digits.shown(data, "math"), epochs=8, rate=5e-4)
    digits.write_network(place / "base", base)
    digits.write_network(place / "math", tuned)
    torch.set_num_threads(threads)
    return place


def accuracy(checkpoint: Path) -> float:
    """On turned digits that it was not trained on."""
    return scores(weights_of(checkpoint), digits.digits(), "final")["math"]


def dare(place: Place, *, seed: int, rescale: bool) -> float:
    """A tenth of the task vector's entries, drawn by DARE."""
    recipe = place.recipe(
        "dare_linear",
        ("math",),
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
    tuned = accuracy(specialist / "math")
    assert tuned > 95
    assert accuracy(specialist / "base") < 50
    rescaled = [dare(specialist, seed=seed, rescale=True) for seed in SEEDS]
    dropped = [dare(specialist, seed=seed, rescale=False) for seed in SEEDS]
    assert fmean(rescaled) >= tuned - 2
    assert max(dropped) < 50
