"""Arcee Fusion: take from a model only the entries that matter most, by a threshold of its own.

Arcee AI, in mergekit. No paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import ROW_LANES
from raymerge.methods.free import Figures, FreeRule, Sweeps
from raymerge.methods.registry import free_method

SAFE_EXPONENT = 600.0
"""Up to this magnitude exp neither overflows nor vanishes in float64, and sums of it do not."""
KEPT_ENTRIES = 2**18
"""Of longer rows exp is not kept until they end, which saves half the work, but worked out twice:
it takes eight times what the entries do in bfloat16."""
ROW_BYTES = 8 * 2 * 2 + 4 * 8
"""Of each row: an anchor and a sum of base and source, and its divergence, rounded in copies."""
ENTRY_BYTES = 8 * 2
"""Of each entry of one row: exp of base and source."""
QUARTILES = (3, 2, 1)


@dataclass(frozen=True, slots=True)
class ArceeFusion(FreeRule):
    """A reduction over the rows, or of long ones two, a histogram, then the fuse."""

    kernel: ClassVar[str] = "fusion"
    long_rows: bool = False
    """Whether a row is summed in a sweep of its own, since exp of it is not kept."""

    @property
    def passes(self) -> Mapping[str, str]:
        """See `FreeRule.passes`."""
        sums = {"softmax": "sums of exp over each row of base and source"}
        return {
            **(sums if self.long_rows else {}),
            "divergence": "of each row's softmax in the source from that in the base",
            "histogram": "importance of each entry, which gives the quartiles",
            "fuse": "take what reaches the threshold, cast",
        }

    @property
    def selects(self) -> bool:
        """See `FreeRule.selects`."""
        return True

    def for_shape(self, shape: tuple[int, ...]) -> FreeRule:
        """See `FreeRule.for_shape`."""
        return ArceeFusion(long_rows=True) if row_length(shape) > KEPT_ENTRIES else self

    def figure_bytes(self, shape: tuple[int, ...], sources: int) -> int:  # noqa: ARG002
        """See `FreeRule.figure_bytes`."""
        kept = ROW_LANES if self.long_rows else row_length(shape)
        return num_rows(shape) * ROW_BYTES + kept * ENTRY_BYTES

    def figures(self, sweeps: Sweeps) -> Figures:
        """See `FreeRule.figures`."""
        length = row_length(sweeps.shape)
        factors = divergences(sweeps, length, long_rows=self.long_rows)
        upper, median, lower = sweeps.ranked("importance", quartile_ranks, length, factors)
        with np.errstate(over="ignore", invalid="ignore"):
            threshold = median + np.float32(1.5) * (upper - lower)
        return length, factors, threshold


def row_length(shape: tuple[int, ...]) -> int:
    """Entries of a row: the last dimension; 1 of a scalar, and at least that."""
    return max(1, shape[-1] if shape else 1)


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of a tensor: all its dimensions but the last; one of a vector or a scalar."""
    return int(np.prod(shape[:-1], dtype=np.int64))


def divergences(sweeps: Sweeps, length: int, *, long_rows: bool) -> npt.NDArray[np.float32]:
    """Of each row, how far the source's softmax is from the base's; 0 where that is not finite."""
    rows = num_rows(sweeps.shape)
    anchors, sums, found = np.zeros((rows, 2)), np.ones((rows, 2)), np.zeros(rows)
    largest = np.zeros(1, np.uint32)

    def sum_rows() -> None:
        if long_rows:
            lanes = np.zeros((2, ROW_LANES))
            sweeps.reduce("fusion.sums", length, anchors, lanes, sums, largest)
        else:
            powers = np.zeros((2, length))
            sweeps.reduce("fusion.rows", length, anchors, powers, found, largest)

    sum_rows()
    if not largest.view(np.float32)[0] <= SAFE_EXPONENT:
        # Softmax is the same whatever is taken off a row; hardly any tensor needs it.
        anchors[:] = -np.inf
        sweeps.reduce("fusion.peaks", length, anchors)
        sum_rows()
    if long_rows:
        lanes = np.zeros(ROW_LANES)
        sweeps.reduce("fusion.divergence", length, anchors, sums, lanes, found)
    # The sum of non-negative divergences may round to less than 0.
    return np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0).astype(np.float32)


def quartile_ranks(entries: int) -> list[int]:
    """Of Q3, median and Q1: the entries `floor(q (n - 1))` in rising order, 1 for the largest."""
    return [entries - quarter * (entries - 1) // 4 for quarter in QUARTILES]


@free_method("arcee_fusion", paper="Arcee AI, mergekit", min_sources=1, max_sources=1)
def arcee_fusion() -> ArceeFusion:
    """Take from the source the entries whose importance stands out, and the rest from the base.

    An entry's importance is how far it moved times how far its row moved: `|x - b|` times the
    Kullback-Leibler divergence of the row's softmax in the source from that in the base, each
    probability raised by 1e-8. A row is the last dimension; a vector is one row. An entry is taken,
    as `b + (x - b)`, if its importance is at least `median + 1.5 (Q3 - Q1)` over the tensor, where
    a quartile is the entry `floor(q (n - 1))` in rising order. Where no row diverges, as where rows
    have one entry, everything is taken.

    Softmax and divergence are float64, from additions, multiplications and divisions alone, summed
    in an order that neither tiles nor devices change; the divergence and the importance are rounded
    to float32.

    Differs from mergekit: there the divergence is float32, which of a fine-tune's small changes
    leaves noise; above a million entries its quartiles are those of a random sample; and its output
    is float32 whatever the sources are.
    """
    return ArceeFusion()
