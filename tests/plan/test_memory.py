"""The budget: a projection never exceeds it; what does not fit is refused with the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.layout import Slot
from raymerge.errors import PlanError
from raymerge.kernels.constants import LOW_BINS
from raymerge.kernels.groups import Group
from raymerge.methods import methods
from raymerge.plan.graph import CopyStep, DeltaStep, FreeStep, Read, SpanStep, Step, TensorNode
from raymerge.plan.memory import (
    DEVICE_TILE,
    LARGEST_TILE,
    PLAN_BYTES_PER_TENSOR,
    PROCESS_BYTES,
    RING_DEPTH,
    SMALLEST_TILE,
    THREAD_BYTES,
    TORCH_BYTES,
    Memory,
    project,
    samples,
    working_bytes,
)
from raymerge.plan.ranges import LEAST_WINDOW_BYTES, WINDOW_BYTES
from raymerge.plan.steps import COPY
from raymerge.plan.tiles import device_bytes, tile_of

MIB, GIB = 2**20, 2**30


def delta(method: str, sources: int, **knobs: Any) -> DeltaStep:
    given = {"weight": (1.0,) * sources, **knobs}
    return DeltaStep(method=method, knobs={}, rule=methods()[method].function(**given))


def step_of(kind: str, inputs: int) -> Step:
    sources = inputs - 1
    if kind == "copy" or sources == 0:
        return COPY
    if kind in ("span", "gram"):
        figures = (1.0,) * inputs if kind == "span" else None
        return SpanStep(method=kind, knobs={}, relative=False, coefficients=figures)
    if kind in ("sce", "arcee_fusion"):
        given = {"select_topk": 0.5} if kind == "sce" else {}
        return FreeStep(method=kind, knobs={}, rule=methods()[kind].function(**given))
    knobs: dict[str, dict[str, Any]] = {
        "ties": {"density": (0.5,) * sources},
        "surveyed": {"density": (0.5,) * sources, "trim": "model"},
        "rescaled": {"density": (0.5,) * sources, "rescale": "l1"},
        "untrimmed": {},
        "band": {"density": (0.5,) * sources, "gamma": (0.1,) * sources},
        "ranked": {"density": (0.5,) * sources, "epsilon": (0.1,) * sources},
        "ranked by norms": {
            "density": (0.5,) * sources,
            "epsilon": (0.1,) * sources,
            "rescale": "l1",
        },
    }
    method = "breadcrumbs" if kind == "band" else "della" if "ranked" in kind else "ties"
    return delta(method, sources, **knobs[kind])


def node(
    kind: str = "span",
    inputs: int = 3,
    elements: int = MIB,
    *,
    dtype: DType = DType.BF16,
    out: DType = DType.BF16,
    name: str = "t",
    row: int | None = None,
) -> TensorNode:
    shape = (elements,) if row is None else (elements // row, row)
    entry = TensorEntry(name, dtype, shape, "f", 0, dtype.num_bytes(shape))
    return TensorNode(
        slot=Slot(name, out, shape, 0, out.num_bytes(shape)),
        step=step_of(kind, inputs),
        inputs=tuple(Read(i, entry) for i in range(inputs)),
    )


def projected(
    *nodes: TensorNode,
    budget_bytes: int = 4 * GIB,
    threads: int = 2,
    tile_elements: int | None = None,
    device_budget_bytes: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    remote: bool = False,
) -> Memory:
    return project(
        nodes,
        device=device,
        budget_bytes=budget_bytes,
        threads=threads,
        tile_elements=tile_elements,
        device_budget_bytes=device_budget_bytes,
        remote=remote,
    )


kinds = st.sampled_from(
    [
        *("copy", "span", "gram", "ties", "surveyed", "rescaled", "untrimmed"),
        *("band", "ranked", "ranked by norms", "sce", "arcee_fusion"),
    ]
)
floating = st.sampled_from([DType.BF16, DType.F16, DType.F32])
nodes = st.builds(
    node,
    kinds,
    st.integers(1, 8),
    st.integers(0, 100) | st.integers(0, 2**32),
    dtype=floating,
    out=floating,
    row=st.none() | st.integers(1, 10**5),
)


@settings(deadline=None)
@given(
    nodes=st.lists(nodes, min_size=1, max_size=8),
    budget_bytes=st.integers(1, 64 * GIB) | st.integers(200 * MIB, 2 * GIB),
    threads=st.integers(1, 64),
    tile_elements=st.none() | st.integers(1, 2**16).map(lambda count: 256 * count),
    device=st.sampled_from(["cpu", "cuda"]),
    remote=st.booleans(),
)
def test_a_projection_is_within_its_budget_or_refused(
    nodes: list[TensorNode],
    budget_bytes: int,
    threads: int,
    tile_elements: int | None,
    device: Literal["cpu", "cuda"],
    *,
    remote: bool,
) -> None:
    try:
        memory = projected(
            *nodes,
            budget_bytes=budget_bytes,
            threads=threads,
            tile_elements=tile_elements,
            remote=remote,
            device=device,
        )
    except PlanError:
        return

    window_bytes = memory.budget.window_bytes
    assert window_bytes == 0 or LEAST_WINDOW_BYTES <= window_bytes <= WINDOW_BYTES
    assert (window_bytes > 0) == remote
    assert memory.pinned_host_bytes <= memory.projected_host_bytes <= budget_bytes
    assert (memory.projected_device_bytes > 0) <= (device == "cuda")
    assert memory.budget.tile_elements % 256 == 0
    assert tile_elements in (None, memory.budget.tile_elements)
    several = [node for node in nodes if len(node.step.passes) > 1]
    again = [node for node in several if not memory.budget.holds(node)]
    assert memory.held_tensors == len(several) - len(again)
    assert memory.reread_tensors == len(again)
    looks = [remote and samples(node) for node in again]
    assert memory.reread_bytes == sum(
        (len(node.step.passes) - 1 + look) * node.input_bytes
        for node, look in zip(again, looks, strict=True)
    )


@settings(deadline=None)
@given(nodes=st.lists(nodes, min_size=1, max_size=4), budget_bytes=st.integers(1, 8 * GIB))
def test_only_what_does_not_fit_as_the_smallest_tile_is_refused(
    nodes: list[TensorNode], budget_bytes: int
) -> None:
    smallest = max(working_bytes(node, SMALLEST_TILE) for node in nodes) + THREAD_BYTES
    fixed = PROCESS_BYTES + PLAN_BYTES_PER_TENSOR * sum(1 + len(n.inputs) for n in nodes)
    fits = fixed + smallest <= budget_bytes
    try:
        projected(*nodes, budget_bytes=budget_bytes, threads=1)
    except PlanError:
        assert not fits
    else:
        assert fits


def test_a_refusal_has_every_number_and_what_to_do() -> None:
    with pytest.raises(PlanError) as caught:
        projected(node("ties", 9, 10**9, name="lm_head.weight"), budget_bytes=GIB, threads=64)

    message = caught.value.message
    assert message.startswith("lm_head.weight needs ")
    for part in ("9 inputs", "tiles of 16384 elements", "64 threads", "budget is 1.0 GiB"):
        assert part in message
    assert "Raise --memory or lower --workers." in message


@pytest.mark.parametrize("tile", [LARGEST_TILE, 2**15, SMALLEST_TILE])
def test_tiles_are_the_largest_that_fit(tile: int) -> None:
    widest = node("span", 30, 10**9, dtype=DType.F32)
    fixed = PROCESS_BYTES + PLAN_BYTES_PER_TENSOR * 31 + THREAD_BYTES

    exact = fixed + working_bytes(widest, tile)
    memory = projected(widest, budget_bytes=exact, threads=1)

    assert memory.budget.tile_elements == tile
    assert memory.projected_host_bytes == exact


def test_a_tensor_swept_twice_is_held_while_it_fits_and_read_again_when_it_does_not() -> None:
    small, large = node("ties", elements=MIB), node("ties", elements=2**30)
    memory = projected(small, large, budget_bytes=4 * GIB)

    assert (memory.held_tensors, memory.reread_tensors) == (1, 1)
    assert memory.reread_bytes == (len(large.step.passes) - 1) * large.input_bytes
    assert memory.projected_host_bytes >= PROCESS_BYTES + 2 * small.input_bytes


def test_a_tensor_swept_once_is_never_held() -> None:
    memory = projected(node("span", elements=MIB), node("copy", elements=MIB))

    assert (memory.held_tensors, memory.reread_tensors, memory.reread_bytes) == (0, 0, 0)


@pytest.mark.parametrize(("kind", "count"), [(Group.ROW, 2**20), (Group.COLUMN, 64)])
def test_the_sums_and_coefficients_of_all_groups_are_counted(kind: Group, count: int) -> None:
    shape = (2**20, 64)
    whole = node("gram", 3, 2**26)
    slot = replace(whole.slot, shape=shape)
    assert isinstance(whole.step, SpanStep)
    grouped = replace(whole, slot=slot, step=replace(whole.step, group=kind))

    more = working_bytes(grouped, LARGEST_TILE) - working_bytes(whole, LARGEST_TILE)
    assert more >= count * (6 * 8 + 3 * 4), "three vectors have six products"
    assert device_bytes(grouped, DEVICE_TILE) > device_bytes(whole, DEVICE_TILE)


@pytest.mark.parametrize("dtype", [DType.U8, DType.F4, DType.I64])
def test_what_is_copied_needs_no_arithmetic_room(dtype: DType) -> None:
    copied = replace(
        node("copy", 1, MIB, dtype=dtype, out=dtype), step=CopyStep("not a floating-point tensor")
    )

    assert device_bytes(copied, DEVICE_TILE) == 0
    assert working_bytes(copied, LARGEST_TILE) >= 2 * dtype.num_bytes((LARGEST_TILE,))


def test_a_device_budget_is_not_exceeded_since_its_tiles_follow_from_it() -> None:
    large = node("ties", 9, 2**30)
    free = projected(large, device="cuda", budget_bytes=64 * GIB)
    tight = projected(large, device="cuda", budget_bytes=64 * GIB, device_budget_bytes=GIB)

    assert free.budget.tile_elements == DEVICE_TILE
    assert tight.budget.tile_elements < DEVICE_TILE
    assert GIB // 4 < tight.projected_device_bytes <= GIB < free.projected_device_bytes


def test_a_device_that_cannot_hold_the_smallest_tile_is_refused_with_its_flag() -> None:
    with pytest.raises(PlanError, match="Raise --device-memory"):
        projected(node("ties", 9, 2**30), device="cuda", device_budget_bytes=MIB)


def test_a_band_has_counters_for_both_its_ends() -> None:
    ends = [working_bytes(node(kind, 4), LARGEST_TILE) for kind in ("ties", "band")]

    assert ends[1] - ends[0] == 3 * 8 * LOW_BINS


@pytest.mark.parametrize(
    ("row", "tile"),
    [
        pytest.param(4096, LARGEST_TILE, id="whole rows already"),
        pytest.param(3 * 256, LARGEST_TILE // 768 * 768, id="fewer, to end where a row does"),
        pytest.param(5 * 2**17, 5 * 2**17, id="a row longer than a tile"),
        pytest.param(2049, 2049 * 256, id="rows that end between lanes"),
        pytest.param(None, 2**30, id="a vector is one row"),
    ],
)
def test_a_tile_holds_whole_rows_where_entries_are_ranked(row: int | None, tile: int) -> None:
    wide = node("ranked", elements=2**30 // (row or 1) * (row or 1), row=row)

    assert tile_of(wide, LARGEST_TILE) == tile
    assert tile_of(replace(wide, step=COPY), LARGEST_TILE) == LARGEST_TILE
    # Inputs and output, and a factor for each entry of two sources.
    assert working_bytes(wide, LARGEST_TILE) > tile * (4 * 2 + 2 * 4)
    assert device_bytes(wide, LARGEST_TILE) > tile * 100


def test_a_row_that_does_not_fit_is_refused_with_its_length() -> None:
    with pytest.raises(PlanError, match="rows of 1000000000 are ranked whole") as caught:
        projected(node("ranked", elements=10**9, name="bias"), budget_bytes=GIB)

    assert "bias needs " in caught.value.message
    assert "tiles of 1000000000 elements" in caught.value.message
    assert "Raise --memory" in caught.value.message


def test_densities_that_draw_nothing_rank_nothing() -> None:
    whole = delta("della", 2, density=(1.0, 0.0), epsilon=(0.15, 0.15))
    vector = replace(node(elements=2**30), step=whole)

    assert tile_of(vector, LARGEST_TILE) == LARGEST_TILE


def test_empty_and_scalar_tensors_have_a_projection() -> None:
    scalar = replace(node(elements=1), slot=Slot("t", DType.BF16, (), 0, 2))

    assert projected(node(elements=0), scalar).projected_host_bytes < GIB


def test_a_ring_has_as_many_tiles_in_memory_as_are_under_way() -> None:
    large = node("span", 4, 2**30)
    on_cpu, on_gpu = (
        projected(large, device=device, budget_bytes=8 * GIB, threads=1, tile_elements=MIB)
        for device in ("cpu", "cuda")
    )
    tile = 5 * 2 * MIB  # four inputs and the output, of two bytes each

    assert (on_cpu.budget.depth, on_gpu.budget.depth) == (1, RING_DEPTH)
    more = on_gpu.projected_host_bytes - on_cpu.projected_host_bytes
    assert more == TORCH_BYTES + (RING_DEPTH - 1) * tile
    assert RING_DEPTH * tile <= on_gpu.pinned_host_bytes < RING_DEPTH * tile + MIB
    assert on_cpu.pinned_host_bytes == 0
    waiting = device_bytes(large, MIB, depth=RING_DEPTH) - device_bytes(large, MIB)
    assert waiting == (RING_DEPTH - 1) * tile


def test_of_what_is_held_only_results_take_turns_in_a_ring() -> None:
    held = node("ties", 3, MIB, dtype=DType.F32)
    memory = projected(held, device="cuda", budget_bytes=8 * GIB, threads=1, tile_elements=2**16)

    assert memory.held_tensors == 1
    exact = 3 * 4 * MIB + RING_DEPTH * 2 * 2**16
    assert exact <= memory.pinned_host_bytes < exact + MIB


def test_a_ring_that_does_not_fit_has_shorter_tiles() -> None:
    large = node("span", 9, 2**30, dtype=DType.F32)
    whole = projected(large, device="cuda", budget_bytes=64 * GIB, threads=1)
    tight = projected(large, device="cuda", budget_bytes=2 * GIB, threads=1)

    assert whole.budget.tile_elements == DEVICE_TILE
    assert tight.budget.tile_elements < DEVICE_TILE
    assert tight.projected_host_bytes <= 2 * GIB < whole.projected_host_bytes
    with pytest.raises(PlanError, match="9 inputs, 3 tiles of 16384 elements"):
        projected(large, device="cuda", budget_bytes=PROCESS_BYTES + TORCH_BYTES, threads=1)
