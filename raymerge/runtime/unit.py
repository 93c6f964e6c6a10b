"""Run one unit: read, merge, write at its address, hand back a receipt. Knows no engine.

A unit's bytes are a function of the plan and of the survey's figures, so a unit may run anywhere,
twice, or again after a crash.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from threading import Event, local
from time import perf_counter, time
from typing import TYPE_CHECKING

import numpy as np

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, LOW_COLUMNS
from raymerge.kernels.threshold import Threshold
from raymerge.kernels.tile import Bytes, Counts, Kernels, Selectors, Tile
from raymerge.plan.graph import CopyStep, DeltaStep, Input, TensorNode, Unit
from raymerge.runtime.copies import check_copied, pieces, require_equal
from raymerge.runtime.derived.merged import Workshop
from raymerge.runtime.figures import largest
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.readers import Readers
from raymerge.runtime.receipt import Receipt, TensorReceipt
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.shards import UnitWriter, unit_writer
from raymerge.runtime.tensor import TensorMerge

if TYPE_CHECKING:
    from hashlib import _Hash

OnRead = Callable[[int], None]
"""Told of bytes read from storage."""


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
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def merge(self, unit: Unit) -> Receipt:
        """Write the unit's bytes and return once they are safe."""
        began, clock = time(), perf_counter()
        surveyed = largest(unit.thresholds, unit.ties_before) if unit.thresholds else None
        written: list[TensorReceipt] = []
        with unit_writer(self._settings.units_at, unit, self._settings.access) as writer:
            whole = hashlib.sha256(writer.head) if unit.is_whole_shard else None
            for node, following in zip_longest(unit.nodes, unit.nodes[1:]):
                if following:
                    self._readers.will_need(following.inputs)
                written.append(self._merge_node(node, surveyed, writer, whole))
            shard_sha256 = whole.hexdigest() if whole else None
            stored = writer.finish(shard_sha256)
        # Before the receipt: bytes of a source that changed must not be trusted by a later run.
        self._readers.check_unchanged()
        return Receipt(
            unit=unit.number,
            shard=unit.shard,
            start=unit.start,
            stop=unit.stop,
            head_sha256=hashlib.sha256(writer.head).hexdigest(),
            tensors=tuple(written),
            shard_sha256=shard_sha256,
            stored=stored,
            worker=self._name,
            began=began,
            seconds=round(perf_counter() - clock, 6),
        )

    def _merge_node(
        self, node: TensorNode, surveyed: Selectors | None, writer: UnitWriter, whole: _Hash | None
    ) -> TensorReceipt:
        """Merge a tensor into its unit; `whole` is the hash of all of the shard."""
        clock, digest, num_written, num_read = perf_counter(), hashlib.sha256(), 0, 0

        def on_read(nbytes: int) -> None:
            nonlocal num_read
            num_read += nbytes
            self._on_progress(Progress(read_bytes=nbytes))

        def write(piece: Bytes) -> None:
            nonlocal num_written
            writer.write(piece.data)
            digest.update(piece.data)
            if whole is not None:
                whole.update(piece.data)
            num_written += piece.nbytes
            self._on_progress(Progress(written_bytes=piece.nbytes))

        self._check_twins(node, on_read)
        self._merge_tensor(node, surveyed, write, on_read)
        assert num_written == node.slot.nbytes, (node.slot, num_written)
        return TensorReceipt(
            sha256=digest.hexdigest(),
            read_bytes=num_read,
            seconds=round(perf_counter() - clock, 6),
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

    def _inputs(self, node: TensorNode, on_read: OnRead) -> Inputs:
        if not hasattr(self._thread, "arena"):
            self._thread.arena = Arena()
        return Inputs(
            node,
            self._readers,
            self._thread.arena,
            self._settings.budget,
            stop=self._stop,
            on_read=on_read,
        )

    def _merge_tensor(
        self,
        node: TensorNode,
        surveyed: Selectors | None,
        write: Callable[[Bytes], None],
        on_read: OnRead,
    ) -> None:
        if isinstance(node.step, CopyStep):
            self._copy(node, write, on_read)
        else:
            inputs = self._inputs(node, on_read)
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
        inputs = self._inputs(node, self._on_read)
        merge = TensorMerge(node, inputs, self._kernels, self._settings)
        for tile in inputs.sweep():
            count(merge, tile, counts)

    def _copy(self, node: TensorNode, write: Callable[[Bytes], None], on_read: OnRead) -> None:
        donor, *others = node.inputs
        fillers = [self._readers.filler(other) for other in others]
        for offset, piece in self._pieces(donor, on_read):
            check_copied(node, piece, offset, fillers, settings=self._settings, on_read=on_read)
            write(piece)

    def _check_twins(self, node: TensorNode, on_read: OnRead) -> None:
        for head, embedding in node.twins:
            filler = self._readers.filler(head)
            for offset, piece in self._pieces(embedding, on_read):
                require_equal(
                    embedding,
                    head,
                    piece,
                    offset,
                    filler=filler,
                    sources=self._settings.sources,
                    on_read=on_read,
                )

    def _pieces(self, one: Input, on_read: OnRead) -> Iterator[tuple[int, Bytes]]:
        return pieces(one, self._readers, stop=self._stop, on_read=on_read)

    def _on_read(self, nbytes: int) -> None:
        self._on_progress(Progress(read_bytes=nbytes))


def load_kernels(device: str) -> Kernels:
    """The kernels of a device: numba's on the CPU, torch's on CUDA."""
    if device == "cpu":
        from raymerge.kernels.cpu import CpuKernels

        return CpuKernels()
    from raymerge.kernels.torch_kernels import TorchKernels

    return TorchKernels(device)
