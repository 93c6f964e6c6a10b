"""Run one unit: read, merge, write at its address, hand back a receipt. Knows no engine.

A unit's bytes are a function of the plan and of the survey's figures, so a unit may run anywhere,
twice, or again after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from threading import Event, local

import numpy as np

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, LOW_COLUMNS
from raymerge.kernels.threshold import Threshold
from raymerge.kernels.tile import Bytes, Counts, Kernels, Selectors, Tile
from raymerge.plan.graph import CopyStep, DeltaStep, Input, TensorNode, Unit
from raymerge.runtime.copies import check_copied, pieces, require_equal
from raymerge.runtime.derived.merged import Workshop
from raymerge.runtime.figures import largest
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.readers import Filler, Readers
from raymerge.runtime.settings import OnProgress, Progress, Receipt, RunSettings
from raymerge.runtime.shards import unit_writer
from raymerge.runtime.tensor import TensorMerge


class Worker:
    """Runs units with one device's kernels. Holds nothing that a replacement would miss.

    Any number of threads may call it at once; each has an arena of its own.
    """

    def __init__(
        self, settings: RunSettings, *, stop: Event, on_progress: OnProgress = lambda _: None
    ) -> None:
        self._settings = settings
        self._kernels = load_kernels(settings.device)
        workshop = Workshop(
            self._kernels, stop, tuple(map(settings.under, settings.stages)), settings.budget
        )
        self._readers = Readers(settings.sources, workshop)
        self._stop = stop
        self._on_progress = on_progress
        self._thread = local()

    def merge(self, unit: Unit) -> Receipt:
        """Write the unit's bytes and return once they are safe."""
        digest = hashlib.sha256()
        surveyed = largest(unit.thresholds, unit.ties_before) if unit.thresholds else None
        with unit_writer(self._settings.units_at, unit, self._settings.access) as shard:
            digest.update(shard.head)
            for node, following in zip_longest(unit.nodes, unit.nodes[1:]):
                if following:
                    self._readers.will_need(following.inputs)
                self._check_twins(node)
                position = node.slot.start

                def write(piece: Bytes) -> None:
                    nonlocal position
                    shard.write(piece.data)
                    digest.update(piece.data)
                    position += piece.nbytes
                    self._on_progress(Progress(written_bytes=piece.nbytes))

                self._merge_tensor(node, surveyed, write)
                assert position == node.slot.stop, (node.slot, position)
            stored = shard.finish()
        # Before the receipt: bytes of a source that changed must not be trusted by a later run.
        self._readers.check_unchanged()
        return Receipt(
            unit=unit.number,
            shard=unit.shard,
            start=unit.start,
            stop=unit.stop,
            sha256=digest.hexdigest(),
            stored=stored,
        )

    def will_need(self, unit: Unit) -> None:
        """Advise the kernel that this unit comes next."""
        self._readers.will_need(unit.nodes[0].inputs)

    def count_high(self, unit: Unit) -> Counts:
        """A survey's first sweep: upper magnitude bits of the unit's surveyed deltas."""
        return self._survey(unit, HIGH_BINS, TensorMerge.count_high)

    def count_low(self, unit: Unit, bins: Sequence[int]) -> Counts:
        """A survey's second sweep: lower bits inside each source's bin, and what lies above."""
        return self._survey(
            unit, LOW_COLUMNS, lambda merge, tile, counts: merge.count_low(tile, bins, counts)
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
            on_read=self._on_read,
        )

    def _merge_tensor(
        self, node: TensorNode, surveyed: Selectors | None, write: Callable[[Bytes], None]
    ) -> None:
        if isinstance(node.step, CopyStep):
            self._copy(node, write)
        else:
            inputs = self._inputs(node)
            TensorMerge(node, inputs, self._kernels, self._settings).run(surveyed, write)

    def _survey(
        self, unit: Unit, bins: int, count: Callable[[TensorMerge, Tile, Counts], None]
    ) -> Counts:
        surveyed = [n for n in unit.nodes if isinstance(n.step, DeltaStep) and n.step.surveyed]
        sources = len(surveyed[0].inputs) - 1 if surveyed else 0
        counts = np.zeros((sources, bins), np.int64)
        for node in surveyed:
            self._count(node, count, counts)
        return counts

    def _count(
        self,
        node: TensorNode,
        count: Callable[[TensorMerge, Tile, Counts], None],
        counts: Counts,
    ) -> None:
        # A function of its own: what it holds of the arena has to go before the next tensor's.
        inputs = self._inputs(node)
        merge = TensorMerge(node, inputs, self._kernels, self._settings)
        for tile in inputs.sweep():
            count(merge, tile, counts)

    def _copy(self, node: TensorNode, write: Callable[[Bytes], None]) -> None:
        donor, *others = node.inputs
        fillers = [self._readers.filler(other) for other in others]
        for offset, piece in self._pieces(donor):
            check_copied(
                node, piece, offset, fillers, settings=self._settings, on_read=self._on_read
            )
            write(piece)

    def _check_twins(self, node: TensorNode) -> None:
        for head, embedding in node.twins:
            filler = self._readers.filler(head)
            for offset, piece in self._pieces(embedding):
                self._require_equal(embedding, head, piece, offset, filler)

    def _pieces(self, one: Input) -> Iterator[tuple[int, Bytes]]:
        return pieces(one, self._readers, stop=self._stop, on_read=self._on_read)

    def _require_equal(
        self, one: Input, other: Input, piece: Bytes, offset: int, filler: Filler
    ) -> None:
        require_equal(
            one,
            other,
            piece,
            offset,
            filler=filler,
            sources=self._settings.sources,
            on_read=self._on_read,
        )

    def _on_read(self, nbytes: int) -> None:
        self._on_progress(Progress(read_bytes=nbytes))


def load_kernels(device: str) -> Kernels:
    """The kernels of a device: numba's on the CPU, torch's on CUDA."""
    if device == "cpu":
        from raymerge.kernels.cpu import CpuKernels

        return CpuKernels()
    from raymerge.kernels.torch_kernels import TorchKernels

    return TorchKernels(device)
