"""Fill buffers with rows that come from here and there.

A run of rows is one read, straight into the buffer where nothing is to be done to it. Tiles do not
begin at rows, so a run may be cut anywhere.
"""

from __future__ import annotations

import numpy as np

from raymerge.kernels.tile import Bytes
from raymerge.plan.remapped import CHUNK_ELEMENTS, Remapped, Runs, Stretches
from raymerge.runtime.derived.elements import Floats, narrow, widen
from raymerge.runtime.readers import Readers
from raymerge.tokenizer.rows import MEAN

_MAX_ANNOUNCED = 16
"""Runs of a tile that the kernel is told of ahead: where there are more, they are short."""


class RemappedFiller:
    """Gives the bytes of a `Remapped` input; see `runtime.readers.Filler`."""

    def __init__(self, one: Remapped, readers: Readers) -> None:
        self._one = one
        self._row = one.row_elements
        self._width = one.dtype.bits // 8
        self._parts = [readers.filler(part) for part in one.parts]
        self._stretches = Stretches(one.runs)
        self._mean: Bytes | None = None

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        position = offset // self._width
        stop = position + buffer.nbytes // self._width
        num_read = 0
        for index in self._touched(position, stop):
            begin, end = self._bounds(index)
            begin, end = max(begin, position), min(end, stop)
            piece = buffer[(begin - position) * self._width : (end - position) * self._width]
            num_read += self._fill_stretch(index, begin, piece)
        return num_read

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        position = offset // self._width
        stop = min(position + nbytes // self._width, self._one.num_elements)
        for index in list(self._touched(position, stop))[:_MAX_ANNOUNCED]:
            begin, end = self._bounds(index)
            first, last = max(begin, position), min(end, stop)
            for _, _, part, start in self._stretches[index]:
                if part >= 0:
                    width = self._one.parts[part].dtype.bits // 8
                    at = int(start) * self._row + first - begin
                    self._parts[part].will_need(at * width, (last - first) * width)

    def _touched(self, position: int, stop: int) -> range:
        """Stretches that elements `[position, stop)` touch."""
        return self._stretches.touched(position // self._row, -(-stop // self._row))

    def _bounds(self, index: int) -> tuple[int, int]:
        """Half-open range of the elements of a stretch."""
        first, stop = self._stretches.rows(index)
        return first * self._row, stop * self._row

    def _fill_stretch(self, index: int, position: int, piece: Bytes) -> int:
        """Fill `piece` with the elements of a stretch from `position` on."""
        stretch = self._stretches[index]
        first, _, part, start = map(int, stretch[0])
        if part == MEAN:
            return self._fill_mean(position - first * self._row, piece)
        if part < 0:
            piece[:] = 0
            return 0
        inside = position - first * self._row
        if len(stretch) == 1 and self._one.parts[part].dtype is self._one.dtype:
            return self._parts[part].fill(piece, (start * self._row + inside) * self._width)
        num_read = 0
        for begin in range(0, piece.nbytes // self._width, CHUNK_ELEMENTS):
            chunk = piece[begin * self._width : (begin + CHUNK_ELEMENTS) * self._width]
            num_read += self._average(stretch, inside + begin, chunk)
        return num_read

    def _average(self, stretch: Runs, inside: int, piece: Bytes) -> int:
        """The mean of the stretch's runs: summed in float32 in recipe order, divided once."""
        count = piece.nbytes // self._width
        total: Floats | None = None
        num_read = 0
        for _, _, part, start in stretch.tolist():
            dtype = self._one.parts[part].dtype
            stored = np.empty(dtype.num_bytes((count,)), np.uint8)
            at = (start * self._row + inside) * dtype.bits // 8
            num_read += self._parts[part].fill(stored, at)
            values = widen(stored, dtype)
            total = values if total is None else np.add(total, values, out=total)
        assert total is not None
        if len(stretch) > 1:
            total /= np.float32(len(stretch))
        narrow(total, self._one.dtype, piece)
        return num_read

    def _fill_mean(self, inside: int, piece: Bytes) -> int:
        """Fill with the mean row, again and again, from element `inside` of the padding on."""
        num_read = 0
        if self._mean is None:
            num_read = self._work_out_mean()
        assert self._mean is not None
        row = self._mean.nbytes
        begin = inside * self._width
        filled = 0
        while filled < piece.nbytes:
            at = (begin + filled) % row
            count = min(row - at, piece.nbytes - filled)
            piece[filled : filled + count] = self._mean[at : at + count]
            filled += count
        return num_read

    def _work_out_mean(self) -> int:
        """The mean of all rows that are not padding, in float64 in the order of the rows."""
        total = np.zeros(self._row, np.float64)
        # Whole rows, however many that is: what a tile is must not show in the sum.
        step = max(1, CHUNK_ELEMENTS // self._row)
        num_rows = num_read = 0
        for index in range(len(self._stretches)):
            first, count, part, _ = map(int, self._stretches[index][0])
            if part == MEAN:
                continue
            num_rows += count
            for row in range(first, first + count, step):
                rows = min(step, first + count - row)
                piece = np.empty(rows * self._row * self._width, np.uint8)
                num_read += self._fill_stretch(index, row * self._row, piece)
                values = widen(piece, self._one.dtype).reshape(rows, self._row)
                for one in values:
                    total += one
        self._mean = np.empty(self._row * self._width, np.uint8)
        mean = (total / num_rows).astype(np.float32)
        narrow(mean, self._one.dtype, self._mean)
        return num_read
