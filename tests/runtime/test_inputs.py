"""Where a thread's buffers lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.layout import Slot
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Read
from raymerge.runtime.inputs import Arena

places = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000)), min_size=1, max_size=6)


@given(places=places, size=st.integers(1, 5000))
def test_buffers_are_apart_from_what_is_copied_to_and_from_them(
    places: list[tuple[int, int]], size: int
) -> None:
    arena = Arena()
    arena.reserve(*[size] * len(places))
    buffers = [
        arena.take(size, source=_stored_at(source), target=_written_to(target))
        for source, target in places
    ]
    for buffer, (source, target) in zip(buffers, places, strict=True):
        assert buffer.nbytes == size
        assert _address(buffer) % 64 == 0
        # A copy is slow where its target lies 1 to 63 bytes beyond its source, within their pages.
        assert (_address(buffer) - source) % 4096 not in range(1, 64)
        assert (target - _address(buffer)) % 4096 not in range(1, 64)
    for one, following in pairwise(buffers):
        assert _address(one) + size <= _address(following)


def test_an_arena_that_was_reserved_again_hands_out_the_same_memory() -> None:
    arena = Arena()
    arena.reserve(4096)
    first = arena.take(4096)
    arena.reserve(1024, 1024)
    assert _address(arena.take(1024)) == _address(first)


def test_no_more_is_handed_out_than_was_reserved() -> None:
    arena = Arena()
    arena.reserve(256)
    with pytest.raises(AssertionError):
        arena.take(1024)


def _stored_at(start: int) -> Read:
    return Read(0, TensorEntry("weight", DType.BF16, (1,), "model.safetensors", start, start + 2))


def _written_to(start: int) -> Slot:
    return Slot("weight", DType.BF16, (1,), start, start + 2)


def _address(buffer: Bytes) -> int:
    address: int = buffer.__array_interface__["data"][0]
    return address
