"""Tensors that a LoRA adapter changes, worked out as they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.adapter import (
    BY_COLUMN,
    BY_ROW,
    PLAIN,
    adapt_tile,
    recast_tile,
    square_tile,
)
from raymerge.kernels.floats import CODES
from raymerge.kernels.tile import Bytes
from raymerge.plan.adapted import CHUNK, Adapted, Replaced
from raymerge.plan.graph import Input, Read
from raymerge.runtime.readers import Filler, Readers

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of one tensor, widened: it is `base + scaling * left @ right`."""

    left: Matrix
    """`(rows, rank)`."""
    right: Matrix
    """`(rank, columns)`."""
    rescaled: int
    rescaling: npt.NDArray[np.float64]
    """Magnitude over length, one per row or column."""


class AdaptedFiller:
    """Gives the bytes of an adapted tensor; its factors are read at the first of them."""

    def __init__(self, one: Adapted, readers: Readers) -> None:
        self._one = one
        self._readers = readers
        self._base = _Base(one.base, one.dtype, readers)
        self._loaded: Factors | None = None

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        num_read = 0
        if self._loaded is None:
            self._loaded, num_read = self._load()
        first, count = _elements(buffer, offset, self._one.dtype)
        base, base_bytes = self._base.read(buffer, first, count)
        adapt_tile(
            *self._tile(base, first, count, self._loaded),
            self._loaded.rescaling,
            _address(buffer),
            CODES[self._one.dtype],
        )
        return num_read + base_bytes

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        self._base.will_need(offset, nbytes)

    def _tile(
        self, base: Bytes, first: int, count: int, factors: Factors
    ) -> tuple[int, int, int, int, Matrix, Matrix, float, int]:
        code = CODES[self._one.base.dtype]
        matrices = factors.left, factors.right, self._one.scaling, factors.rescaled
        return _address(base), code, first, count, *matrices

    def _load(self) -> tuple[Factors, int]:
        """The factors, and the bytes read for them."""
        one = self._one
        (a, a_bytes), (b, b_bytes) = (_widened(read, self._readers) for read in (one.a, one.b))
        left, right = (a.T, b.T) if one.transposed else (b, a)
        matrices = np.ascontiguousarray(left), np.ascontiguousarray(right)
        num_read = a_bytes + b_bytes
        if one.magnitude is None:
            return Factors(*matrices, PLAIN, np.empty(0)), num_read
        along = BY_COLUMN if one.transposed else BY_ROW
        lengths, base_bytes = self._lengths(Factors(*matrices, along, np.empty(0)))
        magnitude, magnitude_bytes = _widened(one.magnitude, self._readers)
        magnitudes = magnitude.reshape(-1).astype(np.float64)
        num_read += base_bytes + magnitude_bytes
        with np.errstate(divide="ignore", invalid="ignore"):  # a kernel finds what comes of it
            return Factors(*matrices, along, magnitudes / lengths), num_read

    def _lengths(self, factors: Factors) -> tuple[npt.NDArray[np.float64], int]:
        squares = np.zeros(self._one.b.shape[0])
        base = np.empty(CHUNK * self._one.base.dtype.bits // 8, np.uint8)
        num_read = 0
        for first in range(0, self._one.num_elements, CHUNK):
            count = min(CHUNK, self._one.num_elements - first)
            piece = base[: self._one.base.dtype.num_bytes((count,))]
            num_read += self._base.filler.fill(piece, self._one.base.dtype.num_bytes((first,)))
            square_tile(*self._tile(piece, first, count, factors), squares)
        return np.sqrt(squares), num_read


class ReplacedFiller:
    """Gives the bytes of a tensor that the adapter holds whole."""

    def __init__(self, one: Replaced, readers: Readers) -> None:
        self._one = one
        self._stored = _Base(one.reads[0], one.dtype, readers)

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        first, count = _elements(buffer, offset, self._one.dtype)
        stored, num_read = self._stored.read(buffer, first, count)
        if stored is not buffer:
            code = CODES[self._one.reads[0].dtype]
            recast_tile(_address(stored), code, count, _address(buffer), CODES[self._one.dtype])
        return num_read

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        self._stored.will_need(offset, nbytes)


class _Base:
    """What is read and then changed: in place where it has the type that comes out."""

    def __init__(self, one: Input, dtype: DType, readers: Readers) -> None:
        self.filler: Filler = readers.filler(one)
        self._dtype = one.dtype
        self._out_dtype = dtype

    def read(self, buffer: Bytes, first: int, count: int) -> tuple[Bytes, int]:
        """The elements from `first` on, and the bytes read for them."""
        if self._dtype is not self._out_dtype:
            buffer = np.empty(self._dtype.num_bytes((count,)), np.uint8)
        return buffer, self.filler.fill(buffer, self._dtype.num_bytes((first,)))

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`; offsets are those of what comes out."""
        width, out_width = self._dtype.bits, self._out_dtype.bits
        self.filler.will_need(offset * width // out_width, nbytes * width // out_width)


def _widened(read: Read, readers: Readers) -> tuple[Matrix, int]:
    """A stored tensor as float32, and the bytes read for it."""
    raw = np.empty(read.read_bytes, np.uint8)
    num_read = readers.filler(read).fill(raw, 0)
    wide = np.empty(read.shape, np.float32)
    recast_tile(
        _address(raw), CODES[read.dtype], read.num_elements, _address(wide), CODES[DType.F32]
    )
    return wide, num_read


def _elements(buffer: Bytes, offset: int, dtype: DType) -> tuple[int, int]:
    """Index of the first element that is asked for, and how many are."""
    width = dtype.bits // 8
    return offset // width, buffer.nbytes // width


def _address(array: npt.NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
