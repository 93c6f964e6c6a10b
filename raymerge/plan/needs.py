"""Which stored bytes a unit reads, in the order in which it reads them. Pure.

The plan's side of `runtime/inputs.py` and of the fillers in `runtime/derived/`: what those read is
here, and a change there is a change here. A run reads the right bytes whatever this says; it waits
for what is not announced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from raymerge.plan.adapted import Adapted, Replaced
from raymerge.plan.dequantised import Dequantised
from raymerge.plan.experts import Joined
from raymerge.plan.graph import CopyStep, DeltaStep, Input, Read, TensorNode
from raymerge.plan.memory import Budget, samples, working_bytes
from raymerge.plan.merged import Merged
from raymerge.plan.ranges import Need
from raymerge.plan.remapped import Remapped, Stretches, decode
from raymerge.plan.tiles import tile_of
from raymerge.tokenizer.rows import MEAN

COPY_BYTES = 2**21
"""Piece in which bytes are copied or compared."""
HISTOGRAM = "histogram"
"""The pass that takes a look at the entries first, where a method selects."""

Part = tuple[Read, int, int]
"""A stored tensor and a half-open range of its bytes."""


def merge_needs(nodes: Iterable[TensorNode], budget: Budget) -> Iterator[Need]:
    """What the merge of some tensors reads, one after another."""
    return _placed(nodes, lambda node: _merge_parts(node, budget))


def survey_needs(nodes: Iterable[TensorNode], budget: Budget) -> Iterator[Need]:
    """What one sweep over the surveyed ones of some tensors reads."""
    surveyed = (n for n in nodes if isinstance(n.step, DeltaStep) and n.step.surveyed)
    return _placed(surveyed, lambda node: _swept(node, budget, fresh=True))


def _placed(
    nodes: Iterable[TensorNode], parts: Callable[[TensorNode], Iterable[Part]]
) -> Iterator[Need]:
    for number, node in enumerate(nodes):
        for read, start, stop in parts(node):
            entry = read.entry
            yield Need(number, read.source, entry.file, entry.start + start, entry.start + stop)


def _merge_parts(node: TensorNode, budget: Budget) -> Iterator[Part]:
    for head, embedding in node.twins:
        yield from _side_by_side((embedding, head), budget)
    if isinstance(node.step, CopyStep):
        yield from _side_by_side(node.inputs, budget)
    else:
        yield from _passes(node, budget, node.passes)


def _side_by_side(inputs: Iterable[Input], budget: Budget) -> Iterator[Part]:
    """Whole tensors of one length, a piece of each in turn."""
    alone = [(one, _nothing_held(budget)) for one in inputs]
    nbytes = _nbytes(alone[0][0])
    for start in range(0, nbytes, COPY_BYTES):
        yield from _bytes_of(alone, start, min(start + COPY_BYTES, nbytes), fresh=True)


def _passes(node: TensorNode, budget: Budget, passes: Iterable[str]) -> Iterator[Part]:
    """The sweeps of some passes, and one before a selection; of a tensor that is held, one."""
    fresh = True
    for name in passes:
        if samples(node) and name == HISTOGRAM and not budget.holds(node):
            yield from _swept(node, budget, fresh=fresh)
            fresh = False
        yield from _swept(node, budget, fresh=fresh)
        if budget.holds(node):
            return
        fresh = False


def _swept(node: TensorNode, budget: Budget, *, fresh: bool) -> Iterator[Part]:
    elements, tile = node.inputs[0].num_elements, _tile(node, budget)
    places = ((first, min(tile, elements - first)) for first in range(0, elements, tile))
    return _tiles(node, budget, places, fresh=fresh)


def _tiles(
    node: TensorNode, budget: Budget, places: Iterable[tuple[int, int]], *, fresh: bool
) -> Iterator[Part]:
    inputs = [
        (one, budget.inside(node, one.inner) if one.inner else _nothing_held(budget))
        for one in node.inputs
    ]
    for first, count in places:
        for one, own in inputs:
            width = one.dtype.bits // 8
            yield from _parts(one, first * width, (first + count) * width, own, fresh=fresh)


def _bytes_of(
    inputs: Iterable[tuple[Input, Budget]], start: int, stop: int, *, fresh: bool
) -> Iterator[Part]:
    for one, budget in inputs:
        yield from _parts(one, start, stop, budget, fresh=fresh)


def _parts(one: Input, start: int, stop: int, budget: Budget, *, fresh: bool) -> Iterator[Part]:
    """What the bytes `[start, stop)` of an input are made of.

    Args:
        one: The input.
        start: First byte; bytes are asked for in order.
        stop: Behind the last one.
        budget: What the merge of a stage's result may use.
        fresh: Whether this is the first sweep over it, in which what is kept of it is read.
    """
    if isinstance(one, Read):
        return iter(((one, start, stop),))
    return _KINDS[type(one)](one, start, stop, budget, fresh=fresh)


def _adapted(one: Adapted, start: int, stop: int, budget: Budget, *, fresh: bool) -> Iterator[Part]:
    budget = _nothing_held(budget)
    if fresh and start == 0:
        yield from (_whole(one.a), _whole(one.b))
        if one.magnitude:
            yield from _parts(one.base, 0, _nbytes(one.base), budget, fresh=True)
            yield _whole(one.magnitude)
    width, base_width = one.dtype.bits, one.base.dtype.bits
    within = start * base_width // width, stop * base_width // width
    yield from _parts(one.base, *within, budget, fresh=fresh and one.magnitude is None)


def _replaced(
    one: Replaced, start: int, stop: int, budget: Budget, *, fresh: bool
) -> Iterator[Part]:
    (read,) = one.reads
    width, own_width = one.dtype.bits, read.dtype.bits
    within = start * own_width // width, stop * own_width // width
    return _parts(read, *within, budget, fresh=fresh)


def _dequantised(
    one: Dequantised, start: int, stop: int, _budget: Budget, *, fresh: bool
) -> Iterator[Part]:
    codes, scale = one.reads
    width = one.dtype.bits // 8
    if fresh and start == 0:
        yield _whole(scale)
    yield codes, start // width, stop // width


def _joined(one: Joined, start: int, stop: int, budget: Budget, *, fresh: bool) -> Iterator[Part]:
    width = one.dtype.bits // 8
    edge = 0
    for run in one.runs:
        first, last = max(start, edge), min(stop, edge + run.count * width)
        if first < last:
            at = run.start * width - edge
            yield from _parts(run.of, first + at, last + at, _nothing_held(budget), fresh=fresh)
        edge += run.count * width


def _remapped(
    one: Remapped, start: int, stop: int, budget: Budget, *, fresh: bool
) -> Iterator[Part]:
    stretches, row = _stretches(one.table), one.row_elements
    width = one.dtype.bits // 8
    begin, end = start // width, stop // width
    budget = _nothing_held(budget)
    for index in stretches.touched(begin // row, -(-end // row)):
        first, last = stretches.rows(index)
        if stretches[index][0, 2] != MEAN:
            yield from _rows(one, index, max(begin, first * row), min(end, last * row), budget)
        elif fresh and begin <= first * row and index == _first_mean(one.table):
            for other in range(len(stretches)):
                if stretches[other][0, 2] != MEAN:
                    first, last = stretches.rows(other)
                    yield from _rows(one, other, first * row, last * row, budget)


def _rows(one: Remapped, index: int, begin: int, end: int, budget: Budget) -> Iterator[Part]:
    """What the elements `[begin, end)`, all of one stretch, are made of."""
    stretch = _stretches(one.table)[index]
    for first, _, part, start in stretch.tolist():
        if part >= 0:
            read = one.parts[part]
            width = read.dtype.bits // 8
            at = (start - first) * one.row_elements
            # Rows come from anywhere: what a part keeps is not foreseen.
            yield from _parts(read, (at + begin) * width, (at + end) * width, budget, fresh=False)


@lru_cache(maxsize=8)
def _stretches(table: bytes) -> Stretches:
    return Stretches(decode(table))


@lru_cache(maxsize=8)
def _first_mean(table: bytes) -> int:
    stretches = _stretches(table)
    means = (index for index in range(len(stretches)) if stretches[index][0, 2] == MEAN)
    return next(means, -1)


def _merged(one: Merged, start: int, stop: int, budget: Budget, *, fresh: bool) -> Iterator[Part]:
    node = one.node
    if isinstance(node.step, CopyStep):
        alone = [(each, _nothing_held(budget)) for each in node.inputs]
        yield from _bytes_of(alone, start, stop, fresh=fresh)
        return
    needed = working_bytes(node, budget.tile_elements)
    budget = replace(budget, thread_bytes=max(budget.thread_bytes, needed))
    *reductions, _ = node.passes
    if fresh and start == 0:
        yield from _passes(node, budget, reductions)
    if budget.holds(node):
        return
    tile, elements, width = _tile(node, budget), one.num_elements, one.dtype.bits // 8
    begin, end = -(-start // width // tile) * tile, stop // width
    places = ((first, min(tile, elements - first)) for first in range(begin, end, tile))
    yield from _tiles(node, budget, places, fresh=fresh and not reductions)


_KINDS: Mapping[type[Any], Callable[..., Iterator[Part]]] = {
    Adapted: _adapted,
    Dequantised: _dequantised,
    Joined: _joined,
    Merged: _merged,
    Remapped: _remapped,
    Replaced: _replaced,
}


def _whole(read: Read) -> Part:
    return read, 0, read.read_bytes


def _nbytes(one: Input) -> int:
    return one.dtype.num_bytes(one.shape)


def _tile(node: TensorNode, budget: Budget) -> int:
    return max(1, tile_of(node, budget.tile_elements))


def _nothing_held(budget: Budget) -> Budget:
    """For results of stages that are read for something else than a merge."""
    return replace(budget, thread_bytes=0)
