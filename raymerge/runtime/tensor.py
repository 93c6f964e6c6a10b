"""Merge one tensor: the passes of its step, over whatever tiles its inputs come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from raymerge.kernels.constants import LANES
from raymerge.kernels.feed import DirectFeed, Feed, Work
from raymerge.kernels.groups import Group, GroupSums
from raymerge.kernels.reduce import close_block, gram_matrix, new_sums, num_pairs
from raymerge.kernels.rows import rows_of
from raymerge.kernels.tile import (
    ALL_FINITE,
    Bytes,
    Counts,
    DeltaPass,
    Kernels,
    Ranked,
    Selectors,
    SpanPass,
    Sums,
    Tile,
)
from raymerge.methods.registry import Coefficients, Gram
from raymerge.methods.rules import KeepBand, KeepDrawn, KeepLargest, KeepRanked
from raymerge.plan.graph import STATS, CopyStep, DeltaStep, FreeStep, SpanStep, TensorNode
from raymerge.runtime.coefficients import group_coefficients, tensor_coefficients
from raymerge.runtime.figures import (
    by_rank,
    carried_among,
    delta_pass,
    drawn,
    drawn_by_rank,
    find_thresholds,
    has_ties,
    largest,
    trimmed,
)
from raymerge.runtime.finite import check_finite, in_stage
from raymerge.runtime.free import TensorSweeps
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.reductions import Reductions
from raymerge.runtime.settings import RunSettings
from raymerge.runtime.statistics import Statistics, statistics

T = TypeVar("T")

Apply = Callable[[Tile, Bytes], int]
"""A step's last pass: a tile in, its merged bytes out, a kernel's report returned."""
Check = Callable[[Tile, int, Bytes], None]
"""Raises for what a kernel reported of a tile and its merged bytes."""


@dataclass(frozen=True, slots=True)
class Merging:
    """A tensor whose reductions are done."""

    apply: Apply
    """Merges any tile into the bytes given."""
    check: Check
    carried: Selectors | None
    """What a tile leaves behind for the next one, changed in place; None where tiles stand on their
    own and may be merged in any order."""
    figures: DeltaPass | SpanPass | None = None
    """What the last pass goes by, for who does it for several merges at once; None where that
    cannot be done."""

    def merge(self, tile: Tile, out: Bytes) -> None:
        """Merge any tile into the bytes given, checked."""
        self.check(tile, self.apply(tile, out), out)


class TensorMerge:
    """One tensor on its way through the passes of its step.

    Args:
        node: The tensor.
        inputs: Its inputs.
        kernels: What does the arithmetic.
        settings: Of the run.
        reductions: Shared with other merges, by the identity of their nodes' inputs.
        feed: What whole sweeps go through; its depth is that of the inputs.
    """

    def __init__(
        self,
        node: TensorNode,
        inputs: Inputs,
        kernels: Kernels,
        settings: RunSettings,
        reductions: Reductions | None = None,
        *,
        feed: Feed | None = None,
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._kernels = kernels
        self._settings = settings
        self._gram: Gram | None = None
        self._reductions = reductions or Reductions()
        self._feed = feed or DirectFeed()

    def run(self, surveyed: Selectors | None, write: Callable[[Bytes], None]) -> Statistics | None:
        """Do all passes and hand every merged tile to `write`, in order.

        Args:
            surveyed: Selectors by the model's thresholds, where a survey has fixed them. Their
                count of ties seen is left as it is after this tensor, for the unit's next one.
            write: Takes the bytes.

        Returns:
            Norms and cosines, where the plan wants them.

        Raises:
            NonFiniteError: NaN or Inf in an input, unless the recipe lets it pass, or a finite
                value that leaves the output's range.
        """
        merging, room = self.prepared(surveyed), self._inputs.room

        def end(tile: Tile, bad: int) -> None:
            out = room(tile)
            merging.check(tile, bad, out)
            write(out)

        self._feed.run(self._inputs.sweep(), lambda tile: merging.apply(tile, room(tile)), end)
        return self.statistics

    @property
    def statistics(self) -> Statistics | None:
        """Norms and cosines, where the plan wants them; known once it is prepared."""
        return statistics(self._gram) if self._node.stats and self._gram is not None else None

    def prepared(self, surveyed: Selectors | None) -> Merging:
        """Do all passes but the last, which merges tiles; see `run`."""
        if STATS in self._node.passes:
            self._take_gram()
        step = self._node.step
        carried: Selectors | None = None
        figures: DeltaPass | SpanPass | None = None
        if isinstance(step, SpanStep):
            apply, figures = self._span(step)
        elif isinstance(step, FreeStep):
            apply, carried = self._free(step)
        else:
            assert isinstance(step, DeltaStep), step
            figures = self._figures(step, surveyed)
            carried = figures.selectors if has_ties(figures.selectors) else None
            apply = self._delta(figures)
        return Merging(apply, self.check, carried, figures)

    def count_high(self, tiles: Iterable[Tile], counts: Counts) -> None:
        """Add the upper magnitude bits of each delta to `counts`."""
        self._reduce(tiles, lambda tile: self._kernels.count_high(tile, counts))

    def count_low(self, tiles: Iterable[Tile], bins: Sequence[int], counts: Counts) -> None:
        """Add the lower bits inside each bin, and what lies above it, to `counts`."""
        self._reduce(tiles, lambda tile: self._kernels.count_low(tile, bins, counts))

    def _reduce(self, tiles: Iterable[Tile], add: Work) -> None:
        """Hand tiles to a kernel that adds them to its figures."""
        self._feed.run(tiles, add, lambda tile, bad: self.check(tile, bad, None))

    def check(self, tile: Tile, bad: int, out: Bytes | None) -> None:
        """Raise for what a kernel reported about a tile; `out` is the merged one, if there is."""
        pass_through = self._settings.nan == "pass"
        sources = self._settings.sources
        with in_stage(self._settings.stage):
            check_finite(self._node, tile, bad, out, sources=sources, pass_through=pass_through)

    def _span(self, step: SpanStep) -> tuple[Apply, SpanPass | None]:
        coefficients: Coefficients | None = step.coefficients
        if coefficients is None:
            if self._node.groups.kind is not Group.TENSOR:
                return self._group_span(step), None
            coefficients = tensor_coefficients(self._node, step, self._take_gram())
        rounded = np.array(coefficients, np.float32)
        dtype = self._node.slot.dtype
        return lambda tile, out: self._kernels.span(
            tile, rounded, relative=step.relative, out=out, dtype=dtype
        ), SpanPass(coefficients=rounded, relative=step.relative)

    def _take_gram(self) -> Gram:
        """One sweep: the inner products of all vectors, over the whole tensor."""
        step, vectors = self._node.step, self._node.vectors
        assert not isinstance(step, CopyStep), self._node.slot
        relative = step.relative

        def reduce() -> Gram:
            sums = new_sums(num_pairs(vectors))
            self._reduce(
                self._inputs.sweep(),
                lambda tile: self._kernels.gram(tile, relative=relative, sums=sums),
            )
            return gram_matrix(sums, vectors)

        self._gram = self._once("gram", reduce, relative)
        return self._gram

    def _once(self, name: str, reduce: Callable[[], T], *key: object) -> T:
        """A reduction of these inputs, which what else decides its result is the key of."""
        which = name, id(self._node.inputs), self._settings.nan, *key
        return self._reductions.once(which, reduce)

    def _group_span(self, step: SpanStep) -> Apply:
        groups, relative = self._node.groups, step.relative

        def reduce() -> GroupSums:
            sums = GroupSums.new(groups, len(self._node.inputs) - relative)
            self._reduce(
                self._inputs.sweep(),
                lambda tile: self._kernels.group_gram(tile, groups, relative=relative, sums=sums),
            )
            return sums

        sums = self._once("group gram", reduce, relative, groups.kind)
        rounded = group_coefficients(self._node, step, sums)
        dtype = self._node.slot.dtype
        return lambda tile, out: self._kernels.group_span(
            tile, groups, rounded, relative=relative, out=out, dtype=dtype
        )

    def _free(self, step: FreeStep) -> tuple[Apply, Selectors | None]:
        sweeps = TensorSweeps(self._node, self._inputs, self._kernels, self._reduce)
        figures = step.rule.figures(sweeps)
        name, dtype = step.rule.kernel, self._node.slot.dtype
        return (
            lambda tile, out: self._kernels.apply(name, tile, figures, out=out, dtype=dtype),
            carried_among(figures),
        )

    def _delta(self, figures: DeltaPass) -> Apply:
        dtype = self._node.slot.dtype
        return lambda tile, out: self._kernels.delta(tile, figures, out=out, dtype=dtype)

    def _figures(self, step: DeltaStep, surveyed: Selectors | None) -> DeltaPass:
        selectors = self._selectors(step, surveyed)
        ranked = self._ranked(step)
        if not step.normed:
            return delta_pass(step.rule, selectors, None, ranked)

        def reduce() -> Sums:
            sums = new_sums(2 * len(selectors))
            # The norms' own copy: the count of ties seen has to start over in the delta pass.
            counted = selectors.copy()

            def add(tile: Tile) -> int:
                self._kernels.norms(tile, counted, sums, ranked)
                return ALL_FINITE

            self._reduce(self._inputs.sweep(), add)
            close_block(sums)
            return sums[:, LANES]

        # Selectors say which entries stay, but for those drawn by rank.
        norms = self._once("norms", reduce, selectors.tobytes(), repr(step.rule.keep))
        return delta_pass(step.rule, selectors, norms, ranked)

    def _ranked(self, step: DeltaStep) -> Ranked | None:
        keep = step.rule.keep
        if not step.ranks or not isinstance(keep, KeepRanked):
            return None
        return by_rank(keep, step.rule.rescale, rows_of(self._node.slot.shape))

    def _selectors(self, step: DeltaStep, surveyed: Selectors | None) -> Selectors:
        keep = step.rule.keep
        if isinstance(keep, KeepDrawn | KeepRanked):
            reads = self._node.inputs[1:]
            labels = [self._settings.sources[read.source].label for read in reads]
            seed, tensor = self._settings.seed, self._node.slot.name
            if isinstance(keep, KeepRanked):
                return drawn_by_rank(keep, seed=seed, labels=labels, tensor=tensor)
            return drawn(keep, seed=seed, labels=labels, tensor=tensor)
        if step.surveyed:
            assert surveyed is not None, self._node.slot
            return surveyed
        if step.selects:
            return self._trimmed(keep)
        sources = len(step.rule.weight)
        return largest([None] * sources, [0] * sources)

    def _trimmed(self, keep: KeepLargest | KeepBand) -> Selectors:
        found = self._once(
            "thresholds", lambda: find_thresholds(keep, self._inputs, self), repr(keep)
        )
        return trimmed(keep, found, self._inputs.elements)
