"""What fetching ahead takes of the budget, and what a plan of remote sources reads."""

from __future__ import annotations

import pytest

from raymerge.errors import PlanError
from raymerge.plan.explain import explain
from raymerge.plan.memory import PLAN_BYTES_PER_TENSOR, PROCESS_BYTES, SMALLEST_TILE, THREAD_BYTES
from raymerge.plan.memory import working_bytes as working
from raymerge.plan.ranges import LEAST_WINDOW_BYTES, WINDOW_BYTES
from tests.plan.test_memory import GIB, MIB, node, projected
from tests.plans import plan, recipe

HALF = {"density": 0.5}
FIXED = PROCESS_BYTES + PLAN_BYTES_PER_TENSOR * 4 + THREAD_BYTES


def test_files_need_no_window() -> None:
    assert projected(node("span", elements=MIB)).budget.window_bytes == 0


@pytest.mark.parametrize(
    ("available", "window"),
    [(GIB, WINDOW_BYTES), (100 * MIB, 25 * MIB), (8 * MIB, LEAST_WINDOW_BYTES)],
)
def test_the_window_is_a_quarter_of_what_there_is_within_its_limits(
    available: int, window: int
) -> None:
    memory = projected(
        node("span", 3, elements=4096), budget_bytes=FIXED + available, threads=1, remote=True
    )

    assert memory.budget.window_bytes == window
    assert memory.budget.thread_bytes == available - window


def test_it_gives_way_to_the_smallest_tile() -> None:
    wide = node("span", 3, elements=GIB)
    needed = working(wide, SMALLEST_TILE)
    memory = projected(
        wide, budget_bytes=FIXED + needed + LEAST_WINDOW_BYTES, threads=1, remote=True
    )

    assert memory.budget.window_bytes == LEAST_WINDOW_BYTES
    assert memory.budget.tile_elements == SMALLEST_TILE


def test_what_does_not_fit_beside_the_least_is_refused_with_the_numbers() -> None:
    wide = node("span", 3, elements=GIB)
    budget_bytes = FIXED + working(wide, SMALLEST_TILE) + LEAST_WINDOW_BYTES - 1

    projected(wide, budget_bytes=budget_bytes, threads=1)
    with pytest.raises(PlanError, match=r"2\.5 MiB more to fetch ahead"):
        projected(wide, budget_bytes=budget_bytes, threads=1, remote=True)


def test_what_fits_is_held_even_where_files_would_be_read_again() -> None:
    merge = recipe("ties", "a", base="b", parameters=HALF)
    near, far = (plan(merge, hold=False, remote=remote) for remote in (False, True))

    assert near.digest == far.digest
    assert far.memory.held_tensors == len(far.nodes)
    assert far.bytes_read == sum(node.input_bytes for node in far.nodes)
    assert "each fetching up to 80.0 MiB ahead" in explain(far)
    assert "ahead" not in explain(near)


def test_what_does_not_fit_is_looked_at_whole_before_it_is_selected_from() -> None:
    large = node("ties", elements=GIB)
    memory = projected(large, budget_bytes=GIB, remote=True)

    # The sweep that names the bins, the one that counts in them, and the merge.
    assert memory.reread_bytes == 2 * large.input_bytes
    assert projected(large, budget_bytes=GIB).reread_bytes == large.input_bytes
