"""Fill buffers with runs of other tensors, one behind another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from raymerge.kernels.tile import Bytes
from raymerge.plan.experts import Joined
from raymerge.runtime.readers import Filler, Readers


class JoinedFiller:
    """Fills a tile from each run that it overlaps."""

    def __init__(self, one: Joined, readers: Readers) -> None:
        width = one.dtype.bits // 8
        fillers: dict[int, Filler] = {}
        for run in one.runs:
            if id(run.of) not in fillers:
                fillers[id(run.of)] = readers.filler(run.of)
        self._fillers = [fillers[id(run.of)] for run in one.runs]
        self._starts = [run.start * width for run in one.runs]
        self._edges = [0, *accumulate(run.count * width for run in one.runs)]

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        num_read = done = 0
        for index, start, nbytes in self._overlaps(offset, buffer.nbytes):
            num_read += self._fillers[index].fill(buffer[done : done + nbytes], start)
            done += nbytes
        return num_read

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        for index, start, count in self._overlaps(offset, min(nbytes, self._edges[-1] - offset)):
            self._fillers[index].will_need(start, count)

    def _overlaps(self, offset: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Runs that a range of bytes is in: number, byte of its tensor, bytes."""
        stop = offset + nbytes
        index = bisect_right(self._edges, offset) - 1
        while offset < stop:
            count = min(stop, self._edges[index + 1]) - offset
            yield index, self._starts[index] + offset - self._edges[index], count
            offset += count
            index += 1
