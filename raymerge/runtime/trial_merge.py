"""One merge of a tensor for all trials that have it, and how several go over a tile at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.delta_shared import delta_trials
from raymerge.kernels.tile import Bytes, DeltaPass, Kernels, SpanPass, Tile
from raymerge.methods.rules import KeepDrawn, KeepRanked
from raymerge.plan.graph import DeltaStep, TensorNode
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.receipt import TensorReceipt
from raymerge.runtime.settings import RunSettings
from raymerge.runtime.tensor import Merging, TensorMerge
from raymerge.runtime.trial_output import Alone, Output


class TrialMerge:
    """One merge of a tensor, for all trials that have it."""

    room: Callable[[Tile], Bytes]
    """Where a tile of the result goes; a copy has no tiles."""

    def __init__(self, node: TensorNode, settings: RunSettings) -> None:
        self.node = node
        self.settings = settings
        self.outputs: list[Output] = []
        self.places: tuple[int, ...] = ()
        """Of its inputs among those of all merges."""
        self.merge: TensorMerge | None = None
        self.merging: Merging | None = None
        """None while its reductions are not done, and where they failed."""
        self._clock = perf_counter()

    @property
    def wanted(self) -> bool:
        """Whether a trial that it is for has not failed."""
        return any(output.error is None for output in self.outputs)

    def alone(self) -> Alone:
        """Where its errors end its own trials."""
        return Alone(self.outputs)

    def take(self, tile: Tile, bad: int) -> None:
        """Write a tile that lies in its room already; a kernel has reported `bad` of it."""
        assert self.merge is not None, self.node.slot
        out = self.room(tile)
        self.merge.check(tile, bad, out)
        self.write(out)

    def write(self, piece: Bytes) -> None:
        """Write the next bytes for each trial."""
        for output in self.outputs:
            if output.error is None:
                output.write(piece)

    def end(self, sha256: str) -> None:
        """The tensor is written."""
        found = self.merge.statistics if self.merge else None
        receipt = TensorReceipt(
            sha256=sha256,
            seconds=round(perf_counter() - self._clock, 6),
            norms=found.norms if found else None,
            cosines=found.cosines if found else None,
        )
        for output in self.outputs:
            output.end_tensor(receipt)


_Run = Callable[[Tile, Sequence[Bytes], DType], list[int]]
"""A tile in, its merged bytes out, a kernel's reports returned."""


class LastPass:
    """The last pass of one merge, or of several of the same inputs."""

    def __init__(self, merges: Sequence[TrialMerge], kernels: Kernels) -> None:
        self._merges = merges
        self._run = _alone(merges[0]) if len(merges) == 1 else _fused(merges, kernels)
        self._dtype = merges[0].node.slot.dtype

    def tile(self, inputs: Inputs, first: int, count: int, number: int) -> Tile | None:
        """The next tile; None where every trial has failed that wants it, or fails over it."""
        outputs = [output for one in self._merges if one.wanted for output in one.outputs]
        if outputs:
            # What cannot be read is missing to all of them.
            with Alone(outputs):
                return inputs.of(self._merges[0].places).tile(first, count, number)
        return None

    def apply(self, tile: Tile) -> list[int]:
        """Merge it, into each merge's own room."""
        return self._run(tile, [one.room(tile) for one in self._merges], self._dtype)

    def end(self, tile: Tile, reports: list[int]) -> None:
        """Write it for each trial that has not failed."""
        for one, bad in zip(self._merges, reports, strict=True):
            if one.wanted:
                with one.alone():
                    one.take(tile, bad)


def _alone(one: TrialMerge) -> _Run:
    assert one.merging is not None, one.node.slot
    apply = one.merging.apply
    return lambda tile, outs, _: [apply(tile, outs[0])]


def _fused(merges: Sequence[TrialMerge], kernels: Kernels) -> _Run:
    figures = [_figures(one) for one in merges]
    deltas = [one for one in figures if isinstance(one, DeltaPass)]
    if deltas:
        trials = delta_trials(deltas)
        return lambda tile, outs, dtype: kernels.delta_trials(tile, trials, outs=outs, dtype=dtype)
    spans = [one for one in figures if isinstance(one, SpanPass)]
    coefficients, relative = np.stack([one.coefficients for one in spans]), spans[0].relative
    return lambda tile, outs, dtype: kernels.span_trials(
        tile, coefficients, relative=relative, outs=outs, dtype=dtype
    )


def last_passes(merges: Iterable[TrialMerge], kernels: Kernels) -> list[LastPass]:
    """The last passes of merges whose reductions are done."""
    alike: dict[object, list[TrialMerge]] = {}
    for one in merges:
        if one.merging is not None:
            alike.setdefault(_family(one, one.merging.figures), []).append(one)
    return [LastPass(group, kernels) for group in alike.values()]


def _family(one: TrialMerge, figures: DeltaPass | SpanPass | None) -> object:
    """Equal for merges that have their last pass in common."""
    if figures is None:
        return id(one)
    return one.places, type(figures), isinstance(figures, SpanPass) and figures.relative


def _figures(one: TrialMerge) -> DeltaPass | SpanPass:
    assert one.merging is not None, one.node.slot
    assert one.merging.figures is not None, one.node.slot
    return one.merging.figures


def distinct(nodes: Sequence[TensorNode], outputs: Sequence[Output]) -> list[TrialMerge]:
    """The merges of a tensor that differ, each with the trials it is for."""
    found: dict[object, TrialMerge] = {}
    for node, output in zip(nodes, outputs, strict=True):
        if output.error is not None:
            continue
        key = id(node.step), id(node.inputs), node.stats, output.settings.nan, _drawn(node, output)
        merge = found.setdefault(key, TrialMerge(node, output.settings))
        merge.outputs.append(output)
    return list(found.values())


def _drawn(node: TensorNode, output: Output) -> object:
    """What draws depend on besides the step and the tensor's name."""
    step = node.step
    if not (isinstance(step, DeltaStep) and isinstance(step.rule.keep, KeepDrawn | KeepRanked)):
        return None
    labels = tuple(output.settings.sources[one.source].label for one in node.inputs[1:])
    return output.settings.seed, labels
