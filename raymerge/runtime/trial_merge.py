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

    out: Bytes
    """Room for a tile of the result; a copy has none."""

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

    def room(self, count: int) -> Bytes:
        """Where a tile of so many elements goes."""
        return self.out[: self.node.slot.dtype.num_bytes((count,))]

    def apply(self, tile: Tile) -> None:
        """Merge a tile of its inputs, and write it for each trial."""
        assert self.merging is not None, self.node.slot
        out = self.room(tile.count)
        self.merging.merge(tile, out)
        self.write(out)

    def take(self, tile: Tile, bad: int) -> None:
        """Write a tile that lies in its room already; a kernel has reported `bad` of it."""
        assert self.merge is not None, self.node.slot
        out = self.room(tile.count)
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


class FusedPass:
    """The last pass of several merges of the same inputs."""

    def __init__(self, merges: Sequence[TrialMerge], kernels: Kernels) -> None:
        self._merges = merges
        self._run = _fused([_figures(one) for one in merges], kernels)
        self._dtype = merges[0].node.slot.dtype

    def apply(self, inputs: Inputs, first: int, count: int) -> None:
        """Merge a tile, and write it for each trial that has not failed."""
        wanted = [one for one in self._merges if one.wanted]
        if not wanted:
            return
        # What cannot be read is missing to all of them.
        with Alone([output for one in wanted for output in one.outputs]):
            tile = inputs.of(wanted[0].places).tile(first, count)
            reports = self._run(tile, [one.room(count) for one in self._merges], self._dtype)
            for one, bad in zip(self._merges, reports, strict=True):
                if one.wanted:
                    with one.alone():
                        one.take(tile, bad)


_Run = Callable[[Tile, Sequence[Bytes], DType], list[int]]
"""A tile in, its merged bytes out, a kernel's reports returned."""


def _fused(figures: Sequence[DeltaPass | SpanPass], kernels: Kernels) -> _Run:
    deltas = [one for one in figures if isinstance(one, DeltaPass)]
    if deltas:
        trials = delta_trials(deltas)
        return lambda tile, outs, dtype: kernels.delta_trials(tile, trials, outs=outs, dtype=dtype)
    spans = [one for one in figures if isinstance(one, SpanPass)]
    coefficients, relative = np.stack([one.coefficients for one in spans]), spans[0].relative
    return lambda tile, outs, dtype: kernels.span_trials(
        tile, coefficients, relative=relative, outs=outs, dtype=dtype
    )


class OwnPass:
    """The last pass of one merge."""

    def __init__(self, merge: TrialMerge) -> None:
        self._merge = merge

    def apply(self, inputs: Inputs, first: int, count: int) -> None:
        """See `FusedPass.apply`."""
        one = self._merge
        if one.wanted:
            with one.alone():
                one.apply(inputs.of(one.places).tile(first, count))


def last_passes(merges: Iterable[TrialMerge], kernels: Kernels) -> list[FusedPass | OwnPass]:
    """The last passes of merges whose reductions are done."""
    alike: dict[object, list[TrialMerge]] = {}
    for one in merges:
        if one.merging is not None:
            alike.setdefault(_family(one, one.merging.figures), []).append(one)
    return [
        FusedPass(group, kernels) if len(group) > 1 else OwnPass(group[0])
        for group in alike.values()
    ]


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
