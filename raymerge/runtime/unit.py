"""Run one unit: read, merge, write at its address, hand back a receipt. Knows no engine.

A unit's bytes are a function of the plan and of the survey's figures, so a unit may run anywhere,
twice, or again after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, local
from typing import Any, Literal

import numpy as np

from raymerge.errors import NonFiniteError, SourceError
from raymerge.kernels.constants import HIGH_BINS, LOW_BINS
from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, kept_count, threshold
from raymerge.kernels.tile import ALL_FINITE, Bytes, Counts, Kernels, Selectors, Tile
from raymerge.methods import methods
from raymerge.methods.rules import KeepDrawn, KeepLargest
from raymerge.plan.graph import (
    CopyStep,
    DeltaStep,
    PlannedSource,
    Read,
    SpanStep,
    TensorNode,
    Unit,
)
from raymerge.plan.memory import Budget
from raymerge.plan.steps import COPY, arguments
from raymerge.runtime.inputs import COPY_BYTES, Arena, Inputs, Readers, StoppedError, non_finite_index
from raymerge.storage.posix import PosixShard


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every worker of a run has to know besides its units."""

    sources: tuple[PlannedSource, ...]
    folder: str
    """Where shards are filled."""
    seed: int
    nan: Literal["error", "pass"]
    budget: Budget
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a unit was written: its range of the shard and the sha256 of those bytes."""

    unit: int
    shard: str
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes moved since the last report."""

    read_bytes: int = 0
    written_bytes: int = 0


OnProgress = Callable[[Progress], None]


class Worker:
    """Runs units with one device's kernels. Holds nothing that a replacement would miss.

    Any number of threads may call it at once; each has an arena of its own.
    """

    def __init__(
        self, settings: RunSettings, *, stop: Event, on_progress: OnProgress = lambda _: None
    ) -> None:
        self._settings = settings
        self._readers = Readers(settings.sources)
        self._kernels = load_kernels(settings.device)
        self._stop = stop
        self._on_progress = on_progress
        self._thread = local()

    def merge(self, unit: Unit) -> Receipt:
        """Write the unit's bytes and return once they are on the disk."""
        digest = hashlib.sha256()
        with PosixShard(Path(self._settings.folder, unit.shard), unit.shard_bytes) as shard:
            for node in unit.nodes:
                self._check_twins(node)
                position = node.slot.start

                def write(piece: Bytes) -> None:
                    nonlocal position
                    shard.write_at(memoryview(piece), position)
                    digest.update(piece)
                    position += piece.nbytes
                    self._on_progress(Progress(written_bytes=piece.nbytes))

                self._merge_tensor(node, unit, write)
                assert position == node.slot.stop, (node.slot, position)
            shard.sync()
        return Receipt(
            unit=unit.number,
            shard=unit.shard,
            start=unit.start,
            stop=unit.stop,
            sha256=digest.hexdigest(),
        )

    def will_need(self, unit: Unit) -> None:
        """Advise the kernel that this unit comes next."""
        self._readers.will_need([read for node in unit.nodes for read in node.inputs])

    def count_high(self, unit: Unit) -> Counts:
        """A survey's first sweep: upper magnitude bits of the unit's surveyed deltas."""
        return self._survey(unit, HIGH_BINS, self._count_high)

    def count_low(self, unit: Unit, bins: Sequence[int]) -> Counts:
        """A survey's second sweep: lower bits inside each source's bin."""
        return self._survey(
            unit, LOW_BINS, lambda node, tile, counts: self._kernels.count_low(tile, bins, counts)
        )

    def count_ties(self, unit: Unit, thresholds: Sequence[Threshold]) -> list[int]:
        """A survey's third sweep: the unit's entries tied at each source's threshold."""
        counts = self.count_low(unit, [found.bits >> 16 for found in thresholds])
        return [
            int(row[found.bits & (LOW_BINS - 1)])
            for row, found in zip(counts, thresholds, strict=True)
        ]

    def check_sources(self) -> None:
        """Raise SourceError if a source changed while it was read."""
        self._readers.check_unchanged()

    def close(self) -> None:
        """Close the sources' files."""
        self._readers.close()

    def _inputs(self, node: TensorNode) -> Inputs:
        if not hasattr(self._thread, "arena"):
            self._thread.arena = Arena()
        return Inputs(
            node,
            self._readers,
            self._thread.arena,
            self._settings.budget,
            stop=self._stop,
            on_read=lambda nbytes: self._on_progress(Progress(read_bytes=nbytes)),
        )

    def _merge_tensor(self, node: TensorNode, unit: Unit, write: Callable[[Bytes], None]) -> None:
        if isinstance(node.step, CopyStep):
            self._copy(node, write)
            return
        inputs = self._inputs(node)
        if isinstance(node.step, SpanStep):
            apply = self._span(node, node.step, inputs)
        else:
            apply = self._delta(node, node.step, inputs, unit)
        for tile in inputs.sweep():
            out = inputs.out[: node.slot.dtype.num_bytes((tile.count,))]
            self._check_finite(node, tile, apply(tile, out), out)
            write(out)

    def _span(
        self, node: TensorNode, step: SpanStep, inputs: Inputs
    ) -> Callable[[Tile, Bytes], int]:
        coefficients = step.coefficients
        if coefficients is None:
            from raymerge.kernels.reduce import gram_matrix, new_sums, num_pairs

            vectors = len(node.inputs) - step.relative
            sums = new_sums(num_pairs(vectors))
            for tile in inputs.sweep():
                bad = self._kernels.gram(tile, relative=step.relative, sums=sums)
                self._check_finite(node, tile, bad, None)
            gram = gram_matrix(sums, vectors)
            coefficients = tuple(methods()[step.method].function(gram, **arguments(step.knobs)))
        rounded = np.array(coefficients, np.float32)
        return lambda tile, out: self._kernels.span(
            tile, rounded, relative=step.relative, out=out, dtype=node.slot.dtype
        )

    def _delta(
        self, node: TensorNode, step: DeltaStep, inputs: Inputs, unit: Unit
    ) -> Callable[[Tile, Bytes], int]:
        from raymerge.kernels.reduce import LANES, close_block, new_sums
        from raymerge.runtime.figures import delta_pass

        selectors = self._selectors(node, step, inputs, unit)
        norms = None
        if step.normed:
            sums = new_sums(2 * len(selectors))
            # The norms' own copy: its count of ties seen has to start over in the delta pass.
            counted = selectors.copy()
            for tile in inputs.sweep():
                self._kernels.norms(tile, counted, sums)
            close_block(sums)
            norms = sums[:, LANES]
        figures = delta_pass(step.rule, selectors, norms)
        return lambda tile, out: self._kernels.delta(
            tile, figures, out=out, dtype=node.slot.dtype
        )

    def _selectors(
        self, node: TensorNode, step: DeltaStep, inputs: Inputs, unit: Unit
    ) -> Selectors:
        from raymerge.runtime import figures

        keep = step.rule.keep
        sources = [self._settings.sources[read.source] for read in node.inputs[1:]]
        if isinstance(keep, KeepDrawn):
            labels = [source.label for source in sources]
            return figures.drawn(
                keep, seed=self._settings.seed, labels=labels, tensor=node.slot.name
            )
        untouched: list[Threshold | None] = [None] * len(sources)
        if not isinstance(keep, KeepLargest) or not step.selects:
            return figures.largest(untouched, [0] * len(sources))
        if step.surveyed:
            return figures.largest(unit.thresholds, unit.ties_before)
        return figures.largest(self._thresholds(node, keep, inputs), [0] * len(sources))

    def _thresholds(
        self, node: TensorNode, keep: KeepLargest, inputs: Inputs
    ) -> list[Threshold | None]:
        """The threshold of each source over this tensor; None keeps everything."""
        wanted = [kept_count(density, inputs.elements) for density in keep.density]
        high = np.zeros((len(wanted), HIGH_BINS), np.int64)
        for tile in inputs.sweep():
            self._count_high(node, tile, high)
        trimmed = [0 < k and density < 1 for k, density in zip(wanted, keep.density, strict=True)]
        bins = [
            high_bin(row, k) if trim else -1
            for row, k, trim in zip(high, wanted, trimmed, strict=True)
        ]
        low = np.zeros((len(wanted), LOW_BINS), np.int64)
        for tile in inputs.sweep():
            self._kernels.count_low(tile, bins, low)
        return [
            threshold(high[i], low[i], wanted[i]) if trimmed[i] else NOTHING if density <= 0 else None
            for i, density in enumerate(keep.density)
        ]

    def _count_high(self, node: TensorNode, tile: Tile, counts: Counts) -> None:
        self._check_finite(node, tile, self._kernels.count_high(tile, counts), None)

    def _survey(
        self, unit: Unit, bins: int, count: Callable[[TensorNode, Tile, Counts], None]
    ) -> Counts:
        surveyed = [n for n in unit.nodes if isinstance(n.step, DeltaStep) and n.step.surveyed]
        sources = len(surveyed[0].inputs) - 1 if surveyed else 0
        counts = np.zeros((sources, bins), np.int64)
        for node in surveyed:
            for tile in self._inputs(node).sweep():
                count(node, tile, counts)
        return counts

    def _copy(self, node: TensorNode, write: Callable[[Bytes], None]) -> None:
        donor, *others = node.inputs
        for offset, piece in self._pieces(donor):
            for other in others:
                self._require_equal(donor, other, piece, offset)
            if node.step is COPY and donor.entry.dtype.mergeable and self._settings.nan == "error":
                index = non_finite_index(piece, donor.entry.dtype)
                if index is not None:
                    self._refuse(node, donor, offset * 8 // donor.entry.dtype.bits + index)
            write(piece)

    def _check_twins(self, node: TensorNode) -> None:
        for head, embedding in node.twins:
            for offset, piece in self._pieces(embedding):
                self._require_equal(embedding, head, piece, offset)

    def _pieces(self, read: Read) -> Any:
        nbytes = read.entry.nbytes
        buffer = np.empty(min(nbytes, COPY_BYTES), np.uint8)
        for offset in range(0, nbytes, COPY_BYTES):
            if self._stop.is_set():
                raise StoppedError("stopped")
            piece = buffer[: min(COPY_BYTES, nbytes - offset)]
            self._readers.fill(read, piece, offset)
            self._on_progress(Progress(read_bytes=piece.nbytes))
            yield offset, piece

    def _require_equal(self, one: Read, other: Read, piece: Bytes, offset: int) -> None:
        compared = np.empty_like(piece)
        self._readers.fill(other, compared, offset)
        if np.array_equal(piece, compared):
            return
        first, second = (self._settings.sources[read.source].label for read in (one, other))
        if first == second:
            raise SourceError(
                f"{first}: config.json says the head is tied, but {other.entry.name} differs from "
                f"{one.entry.name}; set tie_word_embeddings to false there if the head is its own, "
                f"else write `drop: [{other.entry.name}]`",
                source=first,
                tensor=other.entry.name,
                file=other.entry.file,
            )
        raise SourceError(
            f"{one.entry.name} holds {one.entry.dtype} values, which are not merged, and differs "
            f"between {first} and {second}. To copy the donor's write `keep: [{one.entry.name}]`, "
            f"to leave it out `drop: [{one.entry.name}]`.",
            source=second,
            tensor=one.entry.name,
            file=other.entry.file,
        )

    def _check_finite(self, node: TensorNode, tile: Tile, bad: int, out: Bytes | None) -> None:
        """Raise for what a kernel reported, unless the recipe lets NaN and Inf pass."""
        if bad == ALL_FINITE:
            return
        if self._settings.nan == "error" and bad < len(node.inputs):
            index = non_finite_index(tile.buffers[bad], tile.dtypes[bad])
            self._refuse(node, node.inputs[bad], tile.first + (index or 0))
        if out is not None and (index := _overflow_index(tile, out, node)) is not None:
            raise NonFiniteError(
                f"{node.slot.name}: element {tile.first + index} of the result is beyond the range "
                f"of {node.slot.dtype.torch_name}, and every source is finite there. Write a wider "
                "dtype, or smaller weights.",
                tensor=node.slot.name,
            )

    def _refuse(self, node: TensorNode, read: Read, index: int) -> None:
        source = self._settings.sources[read.source]
        raise NonFiniteError(
            f"{source.label}: {read.entry.name} holds a NaN or Inf at element {index} "
            f"({read.entry.file}). `nan: pass` in the recipe lets it through.",
            source=source.label,
            tensor=node.slot.name,
            file=read.entry.file,
        )


def _overflow_index(tile: Tile, out: Bytes, node: TensorNode) -> int | None:
    """The first element that is not finite though every input is."""
    from raymerge.kernels.torch_kernels import DTYPES, torch

    finite = torch.ones(tile.count, dtype=torch.bool)
    for buffer, dtype in zip(tile.buffers, tile.dtypes, strict=True):
        finite &= torch.from_numpy(buffer).view(DTYPES[dtype]).isfinite()
    overflow = finite & ~torch.from_numpy(out).view(DTYPES[node.slot.dtype]).isfinite()
    return int(overflow.nonzero()[0]) if overflow.any() else None


def load_kernels(device: str) -> Kernels:
    """The kernels of a device: numba's on the CPU, torch's on CUDA."""
    if device == "cpu":
        from raymerge.kernels.cpu import CpuKernels

        return CpuKernels()
    from raymerge.kernels.torch_kernels import TorchKernels

    return TorchKernels(device)
