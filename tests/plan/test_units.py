"""Units: every byte of a shard is in exactly one of them."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.layout import Shard, lay_out
from raymerge.plan.graph import Step, TensorNode, Unit
from raymerge.plan.steps import KEEP
from raymerge.plan.units import (
    LIGHT_UNIT_BYTES,
    MAX_UNIT_TENSORS,
    UNIT_BYTES,
    cut,
    dispatch_order,
)
from tests.plans import catalog, plan, recipe

MIB = 2**20

sizes = st.integers(0, 100) | st.integers(0, 200 * MIB) | st.sampled_from([32 * MIB, UNIT_BYTES])
dtypes = st.sampled_from([DType.BF16, DType.F32, DType.U8])
outputs = st.lists(st.tuples(dtypes, sizes), min_size=1, max_size=300).map(
    lambda kinds: [(f"t.{i}", dtype, (size,)) for i, (dtype, size) in enumerate(kinds)]
)


MODEL = {"t": (DType.BF16, (8,))}
HEAVY = plan(recipe("ties", "b", base="a"), [catalog(label, MODEL) for label in "ab"]).nodes[0].step


def nodes_of(shards: tuple[Shard, ...], step: Step = KEEP) -> dict[str, TensorNode]:
    slots = [slot for shard in shards for slot in shard.slots]
    return {slot.name: TensorNode(slot=slot, step=step, inputs=()) for slot in slots}


@settings(deadline=None)
@given(outputs=outputs, max_shard_bytes=st.integers(1, 2**31), whole_shards=st.booleans())
def test_every_byte_of_a_shard_is_in_one_unit(
    outputs: list[tuple[str, DType, tuple[int, ...]]], max_shard_bytes: int, *, whole_shards: bool
) -> None:
    shards = lay_out(outputs, max_shard_bytes=max_shard_bytes)
    units = cut(shards, nodes_of(shards), whole_shards=whole_shards)

    assert [unit.number for unit in units] == list(range(len(units)))
    for shard in shards:
        members = [unit for unit in units if unit.shard == shard.name]
        edges = [0, *(unit.stop for unit in members)]
        assert [unit.start for unit in members] == edges[:-1]
        assert edges[-1] == shard.nbytes == members[0].shard_bytes
        assert [node.slot for unit in members for node in unit.nodes] == list(shard.slots)


@settings(deadline=None)
@given(outputs=outputs, work=st.sampled_from([(KEEP, LIGHT_UNIT_BYTES), (HEAVY, UNIT_BYTES)]))
def test_units_are_of_one_tensor_or_of_at_most_their_limit_and_no_smaller_than_need_be(
    outputs: list[tuple[str, DType, tuple[int, ...]]], work: tuple[Step, int]
) -> None:
    step, limit = work
    shards = lay_out(outputs, max_shard_bytes=2**31)
    units = cut(shards, nodes_of(shards, step), whole_shards=False)

    for unit in units:
        assert len(unit.nodes) == 1 or unit.stop - unit.nodes[0].slot.start <= limit
        assert len(unit.nodes) <= MAX_UNIT_TENSORS
    for unit, following in pairwise(units):
        full = len(unit.nodes) == MAX_UNIT_TENSORS
        joined = following.nodes[0].slot.stop - unit.nodes[0].slot.start
        assert unit.shard != following.shard or full or joined > limit


def test_a_file_with_one_writer_is_one_unit() -> None:
    shards = lay_out([(f"t.{i}", DType.U8, (MIB,)) for i in range(300)], max_shard_bytes=100 * MIB)
    units = cut(shards, nodes_of(shards), whole_shards=True)

    assert [unit.shard for unit in units] == [shard.name for shard in shards]


def test_a_unit_of_many_small_tensors_travels_in_100_kb() -> None:
    names = [f"model.layers.{i}.mlp.experts.127.down_proj.weight" for i in range(200)]
    sources = [catalog(label, dict.fromkeys(names, (DType.BF16, (8,)))) for label in "abc"]
    unit = plan(recipe("ties", "b", "c", base="a"), sources).units[0]

    assert len(unit.nodes) == MAX_UNIT_TENSORS
    assert len(pickle.dumps(unit)) <= 100_000


def unit(number: int, nbytes: int) -> Unit:
    return Unit(number=number, shard="s", shard_bytes=0, start=0, stop=nbytes, nodes=())


@pytest.mark.parametrize(
    ("mebibytes", "order"),
    [
        ([60, 64, 61], [0, 1, 2]),  # about equal: as their bytes lie
        ([60, 127, 61], [0, 1, 2]),
        ([60, 500, 61, 1000], [3, 1, 0, 2]),  # much larger ones first
        ([500, 501], [0, 1]),
    ],
)
def test_much_larger_units_go_first_and_the_others_as_they_lie(
    mebibytes: list[int], order: list[int]
) -> None:
    units = [unit(number, size * MIB) for number, size in enumerate(mebibytes)]

    assert [unit.number for unit in dispatch_order(units)] == order
