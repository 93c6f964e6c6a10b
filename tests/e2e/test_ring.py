"""Whatever the ring between a thread and its device: the bytes are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raymerge
from raymerge.errors import NonFiniteError
from raymerge.kernels import torch_ring, torch_streams
from raymerge.kernels.tile import Bytes
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.options import RunOptions
from raymerge.plan.build import Plan
from raymerge.plan.memory import RING_DEPTH
from raymerge.runtime import device, unit
from tests.conftest import METHOD_KNOBS, Place, read_tensors, shard_hashes
from tests.late_streams import LateStreams
from tests.rings import hashes, ring_models, ring_plan, through_ring
from tests.sweep.rounds import LOCAL, assert_equal_to_own, merge, trials

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHOD_KNOBS},
    "ties, trim: model": ("ties", {"trim": "model"}),
    "sce, float32": ("sce", {"dtype": "float32"}),
    "nuslerp, columns": (
        "nuslerp",
        {"parameters": {"weight": 0.6, "nuslerp_flatten": False, "nuslerp_row_wise": True}},
    ),
}
EACH_CASE = pytest.mark.parametrize("case", CASES)
TILES = (2**14, 256 * 201, 2**20)
"""Nine or so of a tensor, two or three, and all of it."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("sources"))
    ring_models(place)
    return place


@pytest.fixture(scope="module")
def expected(sources: Place) -> dict[str, dict[str, str]]:
    """What the CPU's own kernels make of every case."""
    found = {}
    for number, (case, (method, top)) in enumerate(CASES.items()):
        plan = ring_plan(sources.any_recipe(method, **top), None)
        out = sources / f"expected-{number}"
        raymerge.merge(
            sources.any_recipe(method, **top), out, engine="local", device="cpu", workers=2,
            shard_bytes=200_000,
        )  # fmt: skip
        found[case] = shard_hashes(out)
        assert len(found[case]) == len(plan.shards) > 1
    return found


def plan_of(sources: Place, case: str, tile: int | None, **options: Any) -> Plan:
    method, top = CASES[case]
    return ring_plan(sources.any_recipe(method, **top), tile, **options)


@EACH_CASE
@pytest.mark.parametrize("tile", TILES)
def test_neither_its_depth_nor_its_tiles_change_a_byte(
    sources: Place, expected: dict[str, dict[str, str]], tmp_path: Path, case: str, tile: int
) -> None:
    plan = plan_of(sources, case, tile)
    found = [through_ring(plan, tmp_path / f"{depth}", depth=depth) for depth in (1, 2, 3)]

    assert list(map(hashes, found)) == [expected[case]] * 3


@EACH_CASE
def test_no_copy_is_taken_for_made_before_it_is(
    sources: Place,
    expected: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    made: list[LateStreams] = []

    def late(_device: str) -> LateStreams:
        made.append(LateStreams())
        return made[-1]

    monkeypatch.setattr(torch_ring, "streams_of", late)
    plan = plan_of(sources, case, TILES[0])

    assert hashes(through_ring(plan, tmp_path / "out", depth=3)) == expected[case]
    assert 1 <= len(made) <= 2, "one for each thread"
    assert not any(streams.left for streams in made)


def test_what_is_held_between_sweeps_is_sent_from_where_it_lies(
    sources: Place, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    plan = plan_of(sources, "ties", TILES[0])
    node = max(plan.nodes, key=lambda node: node.slot.nbytes)
    assert plan.memory.budget.holds(node)
    less = plan.memory.projected_host_bytes - node.held_bytes // 2
    tight = plan_of(sources, "ties", TILES[0], memory_bytes=less)
    assert not tight.memory.budget.holds(node)
    for name, one in (("held", plan), ("again", tight)):
        found = through_ring(one, tmp_path / name, depth=3)
        assert hashes(found) == expected["ties"]


@pytest.mark.parametrize("case", ["linear", "ties", "slerp", "sce"])
def test_buffers_take_no_more_than_the_plan_has_for_them(
    sources: Place,
    expected: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    taken: list[int] = []

    def counted(nbytes: int) -> Bytes:
        taken.append(nbytes)
        return np.empty(nbytes, np.uint8)

    monkeypatch.setattr(torch_streams, "unpinned", counted)
    plan = plan_of(sources, case, TILES[1], engine="ray", device="cuda")
    memory = plan.memory
    assert memory.budget.depth == RING_DEPTH

    assert (
        hashes(through_ring(plan, tmp_path / "out", depth=RING_DEPTH, threads=1))
        == (expected[case])
    )
    each = memory.pinned_host_bytes // memory.threads
    largest = max(node.inputs[0].num_elements for node in plan.nodes)
    assert len(plan.nodes[0].inputs) * min(largest, TILES[1]) < max(taken) <= each
    assert memory.pinned_host_bytes < memory.projected_host_bytes


def broken(place: Place, name: str, element: int) -> None:
    tensors = read_tensors(place / name)
    tensors["tall.weight"].view(-1)[element] = float("nan")
    place.model(name, tensors)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "sce"])
def test_a_nan_is_named_by_its_element(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str, depth: int
) -> None:
    streams = LateStreams()
    monkeypatch.setattr(torch_ring, "streams_of", lambda _: streams)
    ring_models(place)
    broken(place, "a", 100_000)
    broken(place, "b" if method != "slerp" else "base", 200_000)
    plan = ring_plan(place.any_recipe(method), TILES[0])

    with pytest.raises(NonFiniteError, match=r"a: tall.weight holds a NaN .* element 100000"):
        through_ring(plan, place / "out", depth=depth, threads=1)
    assert streams.left == 0
    assert not list((place / "out").glob("*.safetensors"))


def test_stages_inside_a_recipe_are_merged_on_the_device_too(sources: Place) -> None:
    base, a, b = (sources / name for name in ("base", "a", "b"))
    text = f"""
name: one
merge_method: slerp
base_model: {base}
models: [{a}]
parameters: {{t: 0.3}}
---
merge_method: ties
base_model: {base}
models: [one, {b}]
parameters: {{weight: 1, density: 0.3}}
"""
    recipe = sources / "stages.yaml"
    recipe.write_text(text)
    raymerge.merge(
        recipe, sources / "stages", engine="local", device="cpu", workers=2, shard_bytes=200_000
    )
    for depth in (1, 3):
        plan = ring_plan(recipe, TILES[1])
        found = through_ring(plan, sources / f"stages-{depth}", depth=depth)
        assert hashes(found) == shard_hashes(sources / "stages")


@pytest.mark.parametrize("depth", [1, 3])
def test_trials_of_a_sweep_are_their_own_merges(
    sources: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    recipes = {method: sources.any_recipe(method) for method in ("linear", "slerp", "sce", "della")}
    for name, weight, density in (("light", 0.3, 0.4), ("heavy", 0.9, 0.4), ("sparse", 0.6, 0.1)):
        recipes[name] = sources.recipe(
            "ties",
            ("a", "b"),
            base="base",
            name=f"{name}.yaml",
            parameters={"weight": weight, "density": density},
        )
    made: list[LateStreams] = []

    def ring(_device: str, _depth: int) -> torch_ring.Ring:
        made.append(LateStreams())
        return torch_ring.Ring(made[-1], depth)

    options: RunOptions = {**LOCAL, "tile_elements": TILES[0]}
    with monkeypatch.context() as patch:
        patch.setattr(unit, "load_kernels", lambda _: TorchKernels("cpu:0"))
        patch.setattr(device, "load_feed", ring)
        found = merge(trials(recipes, tmp_path / "round"), options)

    assert_equal_to_own(found, tmp_path / "own", options)
    assert made
    assert not any(streams.left for streams in made)
