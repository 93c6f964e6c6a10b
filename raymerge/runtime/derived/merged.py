"""Merge what a stage inside a recipe would have written, whenever a later stage reads it.

The same passes as for a tensor of the output (`runtime/tensor.py`), with two differences: tiles are
asked for from outside, and not always in order; and memory is the result's own, for the thread's
arena belongs to the tensor that is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Event

from raymerge.kernels.tile import Bytes, Kernels, Selectors
from raymerge.plan.graph import CopyStep
from raymerge.plan.memory import Budget, working_bytes
from raymerge.plan.merged import Merged
from raymerge.runtime.copies import check_copied
from raymerge.runtime.finite import in_stage
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.readers import Filler, Readers
from raymerge.runtime.settings import RunSettings
from raymerge.runtime.tensor import Merging, TensorMerge


@dataclass(frozen=True, slots=True)
class Workshop:
    """What stages inside a recipe are merged with."""

    kernels: Kernels
    stop: Event
    stages: tuple[RunSettings, ...]
    """The settings of each, in the plan's order."""
    budget: Budget


def merged_filler(one: Merged, readers: Readers, budget: Budget | None) -> Filler:
    """What fills buffers with a stage's result, for the calling thread.

    Args:
        one: The result.
        readers: The open files.
        budget: What the merge may use; None holds nothing between sweeps.
    """
    shop = readers.workshop
    assert shop is not None, one.name
    if isinstance(one.node.step, CopyStep):
        return CopiedResult(one, readers, shop.stages[one.stage])
    if budget is None:
        needed = working_bytes(one.node, shop.budget.tile_elements)
        budget = replace(shop.budget, thread_bytes=needed)
    return MergedResult(one, readers, shop, budget)


class _Meter:
    """Bytes read so far. Not the filler's own: a circle of references would keep its memory."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def add(self, nbytes: int) -> None:
        self.read_bytes += nbytes


class CopiedResult:
    """A tensor that a stage copies: the bytes of its first input, checked as they pass."""

    def __init__(self, one: Merged, readers: Readers, settings: RunSettings) -> None:
        self._node = one.node
        self._fillers = [readers.filler(each) for each in one.node.inputs]
        self._settings = settings

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        first, *others = self._fillers
        meter = _Meter()
        meter.add(first.fill(buffer, offset))
        with in_stage(self._settings.stage):
            check_copied(
                self._node, buffer, offset, others, settings=self._settings, on_read=meter.add
            )
        return meter.read_bytes

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        for filler in self._fillers:
            filler.will_need(offset, nbytes)


class MergedResult:
    """A tensor that a stage merges.

    Its reductions are done when the first bytes are asked for. From then on any tile can be merged
    at once, except where a count is carried from tile to tile (entries tied at a threshold): then
    what lies before is merged again, into nowhere, unless tiles are asked for in order. Tiles are
    those that the tensor would have on its own, whatever pieces are asked for.
    """

    def __init__(self, one: Merged, readers: Readers, shop: Workshop, budget: Budget) -> None:
        settings = shop.stages[one.stage]
        self._meter = _Meter()
        self._inputs = Inputs(
            one.node, readers, Arena(), budget, stop=shop.stop, on_read=self._meter.add
        )
        self._merge = TensorMerge(one.node, self._inputs, shop.kernels, settings)
        self._merging: Merging | None = None
        self._begin: Selectors | None = None
        """What is carried, as it is before the first tile."""
        self._next = 0
        """The element that what is carried belongs to."""
        self._width = one.dtype.bits // 8
        self._kept = -1
        """The first element of the tile that lies in `Inputs.out`; -1 for none."""

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        before = self._meter.read_bytes
        size = self._inputs.tile_elements
        first = position = offset // self._width
        stop = first + buffer.nbytes // self._width
        while position < stop:
            begin = position // size * size
            end = min(begin + size, self._inputs.elements)
            until = min(end, stop)
            target = self._piece(buffer, position - first, until - first)
            if (position, until) == (begin, end):
                self._merge_tile(begin, end, target)
            else:
                tile = self._kept_tile(begin, end)
                target[:] = self._piece(tile, position - begin, until - begin)
            position = until
        return self._meter.read_bytes - before

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`: its own inputs see to that."""

    def _kept_tile(self, begin: int, end: int) -> Bytes:
        """A tile that is asked for in parts: kept for whoever asks for the rest of it."""
        tile = self._piece(self._inputs.out, 0, end - begin)
        if self._kept != begin:
            self._merge_tile(begin, end, tile)
            self._kept = begin
        return tile

    def _merge_tile(self, begin: int, end: int, out: Bytes) -> None:
        if self._merging is None:
            self._merging = self._merge.prepared(None)
            carried = self._merging.carried
            self._begin = None if carried is None else carried.copy()
        if self._merging.carried is not None and begin != self._next:
            self._seek(self._merging, self._merging.carried, begin)
        self._merging.merge(self._inputs.tile(begin, end - begin), out)
        self._next = end

    def _seek(self, merging: Merging, carried: Selectors, begin: int) -> None:
        """Count what lies before `begin`."""
        if begin < self._next:
            assert self._begin is not None
            carried[:] = self._begin
            self._next = 0
        self._kept = -1
        size = self._inputs.tile_elements
        while self._next < begin:
            merging.merge(
                self._inputs.tile(self._next, size), self._piece(self._inputs.out, 0, size)
            )
            self._next += size

    def _piece(self, buffer: Bytes, first: int, stop: int) -> Bytes:
        return buffer[first * self._width : stop * self._width]
