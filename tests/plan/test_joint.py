"""What a thread needs that merges a tensor for several trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from raymerge.kernels.constants import BLOCK
from raymerge.plan.build import Plan
from raymerge.plan.joint import joint, joint_budget
from raymerge.plan.memory import LARGEST_TILE, SMALLEST_TILE
from raymerge.plan.rebase import unite
from tests.plans import DOWN, catalog, plan, recipe

TENSORS = {DOWN: (catalog("base").tensors[DOWN].dtype, (1024, 1024))}
SOURCES = ("base", "a", "b")


def plans(number: int) -> list[Plan]:
    """TIES of one large tensor, each with a weight of its own."""
    catalogs = [catalog(label, TENSORS) for label in SOURCES]
    recipes = [
        recipe("ties", "a", "b", base="base", parameters={"weight": 0.1 + i / 100, "density": 0.5})
        for i in range(number)
    ]
    return [plan(one, catalogs) for one in recipes]


def needed(trials: Sequence[Plan]) -> int:
    """Bytes of a thread for the tensor."""
    nodes = [rebased.units[0].nodes[0] for rebased in unite(trials).plans]
    tensor = joint(nodes)
    assert tensor is not None
    return tensor.working_bytes(LARGEST_TILE)


@pytest.mark.parametrize("number", [2, 8, 32])
def test_every_trial_has_room_for_its_output_and_its_kept_entries(number: int) -> None:
    out = 2 * LARGEST_TILE
    kept = 4 * BLOCK * len(SOURCES)

    assert needed(plans(number)) - needed(plans(1)) == (number - 1) * (out + kept)


def test_tiles_are_as_small_as_many_trials_need() -> None:
    trials = plans(32)
    budget = replace(trials[0].memory.budget, thread_bytes=needed(trials) - 1)
    tight = [replace(one, memory=replace(one.memory, budget=budget)) for one in trials]
    found = joint_budget(tight, unite(tight), uploads=False)

    assert found is not None
    assert found.tile_elements == LARGEST_TILE // 2


def test_trials_that_do_not_fit_in_the_smallest_tiles() -> None:
    trials = plans(32)
    budget = replace(trials[0].memory.budget, thread_bytes=32 * 2 * SMALLEST_TILE)
    tight = [replace(one, memory=replace(one.memory, budget=budget)) for one in trials]

    assert joint_budget(tight, unite(tight), uploads=False) is None
