"""What a kernel is given, and the interface that the CPU's and torch's kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.groups import Groups, GroupSums
from raymerge.kernels.rows import Rows

if TYPE_CHECKING:
    from raymerge.kernels.delta_shared import DeltaTrials

Bytes = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Selectors = npt.NDArray[np.uint64]
Figure = npt.NDArray[np.generic] | np.generic | int
"""An argument of a free method's kernel: an array, or a scalar of the type the kernel takes."""

ALL_FINITE = -1
"""What a kernel returns unless it met a NaN or an Inf."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The same run of elements of every input of one tensor, as raw bytes."""

    buffers: Sequence[Bytes]
    """One per input; base-relative kernels take the base first."""
    dtypes: Sequence[DType]
    first: int
    """Flat index of the first element in the tensor, a multiple of 256."""
    count: int
    """Elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """How entries are drawn by their rank in a row, the smallest magnitude first.

    Tiles hold whole rows then.
    """

    rows: Rows
    limits: npt.NDArray[np.uint64]
    """`(sources, row length)`: an entry of that rank stays iff its word is below this."""
    factors: npt.NDArray[np.float32]
    """`(sources, row length)`: what an entry of that rank that stays is multiplied by first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaPass:
    """The resolved figures of a delta pass over one tensor."""

    selectors: Selectors
    """How each source's entries are kept, see `delta.py`; `SEEN` is carried from tile to tile."""
    shares: npt.NDArray[np.float32]
    """`weight * rescaling` per source: what an entry is multiplied by."""
    weights: npt.NDArray[np.float32]
    """Weight per source: what `normalize` divides by."""
    elect: bool
    normalize: bool
    scale: np.float32
    ranked: Ranked | None = None
    """Where a selector draws by rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanPass:
    """The resolved figures of a span pass over one tensor."""

    coefficients: npt.NDArray[np.float32]
    """One per vector."""
    relative: bool
    """The first input is the base, and the vectors are the others minus it."""


class Kernels(Protocol):
    """One device's kernels.

    Methods that return an int return the first input that holds a NaN or an Inf, the number of
    inputs where only an output is not finite, or `ALL_FINITE`.
    """

    def gram(self, tile: Tile, *, relative: bool, sums: Sums) -> int:
        """Add a tile to a Gram matrix (`new_sums`); relative: of inputs 1.. minus input 0."""

    def group_gram(self, tile: Tile, groups: Groups, *, relative: bool, sums: GroupSums) -> int:
        """Add a tile to the Gram matrices of rows or columns."""

    def count_high(self, tile: Tile, counts: Counts) -> int:
        """Add the upper 15 magnitude bits of each delta to `counts`, `(sources, HIGH_BINS)`."""

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> int:
        """Add the lower 16 bits inside each high bin, -1 for none, to `counts`.

        Every source has the same number of bins, one after the other. `counts` is
        `(bins, LOW_COLUMNS)`; the last column counts what lies above the bin.
        """

    def norms(
        self, tile: Tile, selectors: Selectors, sums: Sums, ranked: Ranked | None = None
    ) -> None:
        """Add a tile to the L1 norms of each delta: whole in row `2 i`, kept in row `2 i + 1`."""

    def span(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """Write `sum c_i x_i` or, relative, `x_0 + sum c_i (x_i - x_0)`, as `dtype`."""

    def group_span(
        self,
        tile: Tile,
        groups: Groups,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """The same with coefficients for each row or column, `(vectors, groups)`."""

    def delta(self, tile: Tile, figures: DeltaPass, *, out: Bytes, dtype: DType) -> int:
        """Write the base plus the merged task vectors, as `dtype`."""

    def span_trials(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        outs: Sequence[Bytes],
        dtype: DType,
    ) -> list[int]:
        """`span` with each row of coefficients, into bytes of its own; what it returns for each."""
        ...

    def delta_trials(
        self, tile: Tile, trials: DeltaTrials, *, outs: Sequence[Bytes], dtype: DType
    ) -> list[int]:
        """`delta` of several merges, each into its own bytes; what it returns for each."""
        ...

    def reduce(self, name: str, tile: Tile, figures: Sequence[Figure]) -> int:
        """Add a tile to the figures of a free method's reduction; `free.py` lists the names."""

    def apply(
        self, name: str, tile: Tile, figures: Sequence[Figure], *, out: Bytes, dtype: DType
    ) -> int:
        """Write what a free method's last pass makes of a tile, as `dtype`."""
