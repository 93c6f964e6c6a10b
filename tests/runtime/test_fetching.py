"""Remote sources: the bytes of local ones, by the requests foreseen, within the window."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

import raymerge
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.plan.memory import project
from raymerge.plan.needs import merge_needs, survey_needs
from raymerge.plan.ranges import Range, ranges
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import OnProgress, run_settings
from raymerge.storage.store import Access
from tests.conftest import METHOD_KNOBS, Place, shard_hashes
from tests.distant import Distance

KIB = 2**10
WINDOWS = (4 * KIB, 64 * KIB, 2**26)
TILES = (256, 1024, None)
STOP = Event()


def remotely(plan: Plan, window_bytes: int | None = None, *, hold: bool = True) -> Plan:
    """The same plan of sources that are far away."""
    memory = project(
        plan.nodes,
        budget_bytes=plan.memory.budget_bytes,
        device="cpu",
        device_budget_bytes=None,
        threads=plan.memory.threads,
        tile_elements=plan.memory.budget.tile_elements,
        remote=True,
    )
    budget = replace(memory.budget, window_bytes=window_bytes or memory.budget.window_bytes)
    if not hold:
        budget = replace(budget, thread_bytes=0)
    return replace(plan, memory=replace(memory, budget=budget))


def planned(recipe: Path, tile: int | None = None) -> Plan:
    return raymerge.plan(recipe, engine="local", device="cpu", workers=2, tile_elements=tile)


def run(plan: Plan, out: Path, distance: Distance) -> MergeResult:
    def start(folder: str, report: OnProgress) -> LocalEngine:
        settings = run_settings(plan, folder, "cpu", open_source=distance)
        return LocalEngine(settings, threads=plan.memory.threads, on_progress=report)

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


def foreseen(plan: Plan) -> list[Range]:
    """Every request of a merge."""
    budget = plan.memory.budget
    each = [merge_needs(unit.nodes, budget) for unit in plan.units]
    for _ in range(3 if plan.surveyed else 0):
        each += [survey_needs(unit.nodes, budget) for unit in plan.units]
    return [one for needs in each for one in ranges(needs, budget.window_bytes)]


def requests(plan: Plan) -> Counter[tuple[str, str, int, int]]:
    labels = [source.label for source in plan.sources]
    return Counter((labels[r.source], r.file, r.start, r.stop) for r in foreseen(plan))


@pytest.mark.parametrize("method", [*METHOD_KNOBS, "ties, trim: model"])
def test_bytes_and_requests_are_those_foreseen(
    place: Place, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 9)
    place.llamas()
    name, _, trim = method.partition(", trim: ")
    recipe = place.any_recipe(name, **({"trim": trim} if trim else {}))
    raymerge.merge(recipe, place / "near", engine="local", device="cpu", workers=2)

    for window_bytes, tile in itertools.product(WINDOWS, TILES):
        plan = remotely(planned(recipe, tile), window_bytes)
        distance = Distance()
        result = run(plan, place / "far", distance)

        assert shard_hashes(place / "far") == shard_hashes(place / "near")
        assert Counter(distance.asked) == requests(plan)
        assert result.bytes_read == distance.fetched_bytes <= plan.bytes_read
