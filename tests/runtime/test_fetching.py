"""Remote sources: the bytes of local ones, by requests that were foreseen, within a window."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

import raymerge
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.plan.memory import project
from raymerge.plan.needs import merge_needs, survey_needs
from raymerge.plan.ranges import Range, ranges
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import OnProgress, run_settings
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
        settings = run_settings(plan, folder, "cpu", distance)
        return LocalEngine(settings, threads=plan.memory.threads, on_progress=report)

    return execute(plan, out, start, overwrite=True, on_progress=lambda _: None)


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


# --- what is read how often ----------------------------------------------------------------------


@pytest.fixture
def large(place: Place) -> Place:
    """Tensors of 2**19 elements: more than a sample, and than what is held in any case."""
    generator = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        place.model(
            name,
            {
                f"w{i}": torch.from_numpy(generator.normal(size=(512, 1024)) * 0.02).bfloat16()
                for i in range(3)
            },
        )
    return place


@pytest.mark.parametrize("method", ["ties", "sce", "arcee_fusion", "model_stock", "linear"])
def test_what_fits_is_fetched_once(large: Place, method: str) -> None:
    plan = remotely(planned(large.any_recipe(method)))
    result = run(plan, large / "out", distance := Distance())

    once = sum(node.input_bytes for node in plan.nodes)
    assert distance.fetched_bytes == result.bytes_read == plan.bytes_read == once


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "sce", "arcee_fusion", "karcher", "model_stock"]
)
def test_what_does_not_fit_is_fetched_for_every_sweep(large: Place, method: str) -> None:
    recipe = large.any_recipe(method)
    raymerge.merge(recipe, large / "near", engine="local", device="cpu", workers=2)
    plan = remotely(planned(recipe), 2**20, hold=False)
    result = run(plan, large / "far", distance := Distance())

    once = sum(node.input_bytes for node in plan.nodes)
    assert plan.bytes_read >= 2 * once
    assert distance.fetched_bytes == result.bytes_read == plan.bytes_read
    assert Counter(distance.asked) == requests(plan)
    assert shard_hashes(large / "far") == shard_hashes(large / "near")


def test_a_shard_of_small_tensors_is_a_few_requests(place: Place) -> None:
    for name in ("a", "b"):
        place.model(name, {f"model.layers.{i}.w": torch.ones(4096) * i for i in range(400)})
    plan = remotely(planned(place.recipe("linear", parameters={"weight": 1})))
    run(plan, place / "out", distance := Distance())

    assert len(plan.nodes) == 400
    assert len(distance.asked) <= 2 * len(plan.units)
