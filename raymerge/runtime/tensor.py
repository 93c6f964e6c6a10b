"""Merge one tensor: the passes of its step, over whatever tiles its inputs come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raymerge.kernels.constants import LANES
from raymerge.kernels.reduce import close_block, gram_matrix, new_sums, num_pairs
from raymerge.kernels.tile import Bytes, Counts, DeltaPass, Kernels, Selectors, Tile
from raymerge.methods import methods
from raymerge.methods.rules import KeepDrawn
from raymerge.plan.graph import DeltaStep, SpanStep, TensorNode
from raymerge.plan.steps import arguments
from raymerge.runtime.figures import delta_pass, drawn, find_thresholds, has_ties, largest
from raymerge.runtime.finite import check_finite, in_stage
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Merging:
    """A tensor whose reductions are done."""

    merge: Callable[[Tile, Bytes], None]
    """Merges any tile into the bytes given, checked."""
    carried: Selectors | None
    """What a tile leaves behind for the next one, changed in place; None where tiles stand on their
    own and may be merged in any order."""


Apply = Callable[[Tile, Bytes], int]
"""A step's last pass: a tile in, its merged bytes out, a kernel's report returned."""


class TensorMerge:
    """One tensor on its way through the passes of its step."""

    def __init__(
        self, node: TensorNode, inputs: Inputs, kernels: Kernels, settings: RunSettings
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._kernels = kernels
        self._settings = settings

    def run(self, surveyed: Selectors | None, write: Callable[[Bytes], None]) -> None:
        """Do all passes and hand every merged tile to `write`, in order.

        Args:
            surveyed: Selectors by the model's thresholds, where a survey has fixed them. Their
                count of ties seen is left as it is after this tensor, for the unit's next one.
            write: Takes the bytes.

        Raises:
            NonFiniteError: NaN or Inf in an input, unless the recipe lets it pass, or a finite
                value that leaves the output's range.
        """
        merging = self.prepared(surveyed)
        for tile in self._inputs.sweep():
            out = self._inputs.out[: self._node.slot.dtype.num_bytes((tile.count,))]
            merging.merge(tile, out)
            write(out)

    def prepared(self, surveyed: Selectors | None) -> Merging:
        """Do all passes but the last, which merges tiles; see `run`."""
        step = self._node.step
        carried: Selectors | None = None
        if isinstance(step, SpanStep):
            apply = self._span(step)
        else:
            apply, carried = self._delta(step, surveyed)
        return Merging(lambda tile, out: self._check(tile, apply(tile, out), out), carried)

    def count_high(self, tile: Tile, counts: Counts) -> None:
        """Add the upper magnitude bits of each delta to `counts`."""
        self._check(tile, self._kernels.count_high(tile, counts), None)

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> None:
        """Add the lower bits inside each source's bin, and what lies above it, to `counts`."""
        self._check(tile, self._kernels.count_low(tile, bins, counts), None)

    def _check(self, tile: Tile, bad: int, out: Bytes | None) -> None:
        pass_through = self._settings.nan == "pass"
        sources = self._settings.sources
        with in_stage(self._settings.stage):
            check_finite(self._node, tile, bad, out, sources=sources, pass_through=pass_through)

    def _span(self, step: SpanStep) -> Apply:
        coefficients = step.coefficients
        if coefficients is None:
            vectors = len(self._node.inputs) - step.relative
            sums = new_sums(num_pairs(vectors))
            for tile in self._inputs.sweep():
                self._check(tile, self._kernels.gram(tile, relative=step.relative, sums=sums), None)
            gram = gram_matrix(sums, vectors)
            coefficients = tuple(methods()[step.method].function(gram, **arguments(step.knobs)))
        rounded = np.array(coefficients, np.float32)
        dtype = self._node.slot.dtype
        return lambda tile, out: self._kernels.span(
            tile, rounded, relative=step.relative, out=out, dtype=dtype
        )

    def _delta(
        self, step: DeltaStep | object, surveyed: Selectors | None
    ) -> tuple[Apply, Selectors | None]:
        assert isinstance(step, DeltaStep), step
        figures = self._figures(step, surveyed)
        dtype = self._node.slot.dtype
        carried = figures.selectors if has_ties(figures.selectors) else None
        return lambda tile, out: self._kernels.delta(tile, figures, out=out, dtype=dtype), carried

    def _figures(self, step: DeltaStep, surveyed: Selectors | None) -> DeltaPass:
        selectors = self._selectors(step, surveyed)
        if not step.normed:
            return delta_pass(step.rule, selectors, None)
        sums = new_sums(2 * len(selectors))
        # The norms' own copy: the count of ties seen has to start over in the delta pass.
        counted = selectors.copy()
        for tile in self._inputs.sweep():
            self._kernels.norms(tile, counted, sums)
        close_block(sums)
        return delta_pass(step.rule, selectors, sums[:, LANES])

    def _selectors(self, step: DeltaStep, surveyed: Selectors | None) -> Selectors:
        keep = step.rule.keep
        if isinstance(keep, KeepDrawn):
            reads = self._node.inputs[1:]
            labels = [self._settings.sources[read.source].label for read in reads]
            return drawn(keep, seed=self._settings.seed, labels=labels, tensor=self._node.slot.name)
        if step.surveyed:
            assert surveyed is not None, self._node.slot
            return surveyed
        nothing_before = [0] * len(step.rule.weight)
        if step.selects:
            return largest(find_thresholds(keep, self._inputs, self), nothing_before)
        return largest([None] * len(step.rule.weight), nothing_before)
