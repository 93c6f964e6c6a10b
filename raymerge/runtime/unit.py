"""Run one unit: read, merge, write at its address, hand back a receipt. Knows no engine.

A unit's bytes are a function of the plan and of the survey's figures, so a unit may run anywhere,
twice, or again after a crash.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from threading import Event, Lock
from time import perf_counter, time

import numpy as np

from raymerge.checkpoint.layout import Slot
from raymerge.errors import RaymergeError, StorageError
from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, LOW_COLUMNS
from raymerge.kernels.threshold import Threshold
from raymerge.kernels.tile import Bytes, Counts, Selectors, Tile
from raymerge.plan.graph import CopyStep, DeltaStep, Input, TensorNode, Unit
from raymerge.plan.needs import merge_needs, survey_needs
from raymerge.plan.ranges import Need
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.copies import check_copied, pieces, require_equal
from raymerge.runtime.derived.merged import Workshop
from raymerge.runtime.device import Desks, load_kernels
from raymerge.runtime.figures import largest
from raymerge.runtime.hashing import UnitHash, unit_hash
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.readers import Filler, Readers
from raymerge.runtime.receipt import Receipt, TensorReceipt
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.shards import UnitWriter, unit_writer
from raymerge.runtime.statistics import Statistics
from raymerge.runtime.tensor import TensorMerge
from raymerge.runtime.trials import TRIES, Shop, merge_trials

_log = logging.getLogger(__name__)


class Worker:
    """Runs units with one device's kernels. Holds nothing that a replacement would miss.

    Any number of threads may call it at once; each has a desk meanwhile.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        stop: Event,
        on_progress: OnProgress = lambda _: None,
        desks: Desks | None = None,
    ) -> None:
        self._settings = settings
        self._desks = desks or Desks(settings.device, settings.budget.depth)
        self._trials = tuple(map(settings.of_trial, range(len(settings.trials))))
        self._kernels = load_kernels(settings.device)
        workshop = Workshop(
            self._kernels, stop, tuple(map(settings.under, settings.stages)), settings.budget
        )
        self._readers = Readers(settings.sources, workshop, settings.access, settings.open_source)
        self._counting = Lock()
        self._retries = 0
        self._stop = stop
        self._on_progress = on_progress
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        """What receipts and events call it: host and process."""

    def merge_trials(self, unit: SweepUnit) -> list[Receipt | RaymergeError]:
        """Write the units of several trials, whose sources are read once for all of them.

        Returns:
            Of each trial a receipt, once its bytes are safe, or the error that it alone failed
            with.

        Raises:
            SourceError: A source cannot be read or has changed.
        """
        shop = Shop(
            settings=self._settings,
            trials=self._trials,
            kernels=self._kernels,
            readers=self._readers,
            during=self._during,
            desk=lambda: self._desks.mine,
            stop=self._stop,
            on_progress=self._on_progress,
            name=self.name,
        )
        return merge_trials(unit, shop)

    def merge(self, unit: Unit) -> Receipt:
        """Write the unit's bytes and return once they are safe.

        What a store does not take is written again from the start: an upload whose last answer was
        lost can be neither trusted nor taken up.
        """
        for left in reversed(range(TRIES)):
            try:
                return self._merge(unit)
            except StorageError as error:
                if not (error.retryable and left) or self._stop.is_set():
                    raise
                _log.warning("writing %s again: %s", unit.shard, error)
            self._on_progress(Progress(retries=1))
        raise AssertionError("the last try returns or raises")

    def _merge(self, unit: Unit) -> Receipt:
        began, clock = time(), perf_counter()
        surveyed = largest(unit.thresholds, unit.ties_before) if unit.thresholds else None
        needs = merge_needs(unit.nodes, self._settings.budget)
        written: list[TensorReceipt] = []
        with (
            self._during(needs) as readers,
            unit_writer(self._settings.units_at, unit, self._settings.access) as writer,
        ):
            hashes = unit_hash(writer.head, whole_shard=unit.is_whole_shard)
            for number, (node, following) in enumerate(zip_longest(unit.nodes, unit.nodes[1:])):
                readers.reach(number)
                if following:
                    readers.will_need(following.inputs)
                written.append(self._merge_node(node, readers, surveyed, writer, hashes))
            shard_sha256 = hashes.shard()
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
            worker=self.name,
            began=began,
            seconds=round(perf_counter() - clock, 6),
        )

    def _merge_node(
        self,
        node: TensorNode,
        readers: Readers,
        surveyed: Selectors | None,
        writer: UnitWriter,
        hashes: UnitHash,
    ) -> TensorReceipt:
        """Merge a tensor into its unit."""
        clock, num_written = perf_counter(), 0

        def write(piece: Bytes) -> None:
            nonlocal num_written
            writer.write(piece.data)
            hashes.update(piece)
            num_written += piece.nbytes
            self._on_progress(Progress(written_bytes=piece.nbytes))

        self._check_twins(node, readers)
        found = self._merge_tensor(node, readers, surveyed, write)
        assert num_written == node.slot.nbytes, (node.slot, num_written)
        return TensorReceipt(
            sha256=hashes.end_tensor(),
            seconds=round(perf_counter() - clock, 6),
            norms=found.norms if found else None,
            cosines=found.cosines if found else None,
        )

    def will_need(self, unit: Unit | SweepUnit) -> None:
        """Advise the kernel that this unit comes next."""
        if unit.nodes:
            self._readers.will_need(unit.nodes[0].inputs)

    def count_high(self, unit: Unit) -> Counts:
        """A survey's first sweep: upper magnitude bits of the unit's surveyed deltas."""
        return self._survey(unit, HIGH_BINS, TensorMerge.count_high)

    def count_low(self, unit: Unit, bins: Sequence[int]) -> Counts:
        """A survey's second sweep: lower bits inside each source's bin, and what lies above."""
        return self._survey(
            unit, LOW_COLUMNS, lambda merge, tiles, counts: merge.count_low(tiles, bins, counts)
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

    @contextmanager
    def _during(self, needs: Iterable[Need]) -> Iterator[Readers]:
        """A desk for a unit in progress, and its readers; requests made again are reported."""
        budget = self._settings.budget
        with (
            self._desks.seated(),
            self._readers.during(needs, budget, stop=self._stop, on_read=self._on_read) as readers,
        ):
            yield readers
        with self._counting:
            more, self._retries = self._readers.retries - self._retries, self._readers.retries
        if more:
            self._on_progress(Progress(retries=more))

    def _inputs(self, node: TensorNode, readers: Readers) -> Inputs:
        return Inputs(
            node,
            readers,
            self._desks.mine.arena,
            self._settings.budget,
            stop=self._stop,
            on_read=self._on_read,
            depth=self._desks.mine.feed.depth,
        )

    def _merging(self, node: TensorNode, inputs: Inputs) -> TensorMerge:
        feed = self._desks.mine.feed
        return TensorMerge(node, inputs, self._kernels, self._settings, feed=feed)

    def _merge_tensor(
        self,
        node: TensorNode,
        readers: Readers,
        surveyed: Selectors | None,
        write: Callable[[Bytes], None],
    ) -> Statistics | None:
        if isinstance(node.step, CopyStep):
            self._copy(node, readers, write)
            return None
        return self._merging(node, self._inputs(node, readers)).run(surveyed, write)

    def _survey(
        self, unit: Unit, bins: int, count: Callable[[TensorMerge, Iterable[Tile], Counts], None]
    ) -> Counts:
        surveyed = [n for n in unit.nodes if isinstance(n.step, DeltaStep) and n.step.surveyed]
        sources = len(surveyed[0].inputs) - 1 if surveyed else 0
        counts = np.zeros((sources, bins), np.int64)
        with self._during(survey_needs(surveyed, self._settings.budget)) as readers:
            for number, node in enumerate(surveyed):
                readers.reach(number)
                self._count(node, readers, count, counts)
        return counts

    def _count(
        self,
        node: TensorNode,
        readers: Readers,
        count: Callable[[TensorMerge, Iterable[Tile], Counts], None],
        counts: Counts,
    ) -> None:
        # A function of its own: what it holds of the arena has to go before the next tensor's.
        inputs = self._inputs(node, readers)
        count(self._merging(node, inputs), inputs.sweep(), counts)

    def _copy(self, node: TensorNode, readers: Readers, write: Callable[[Bytes], None]) -> None:
        donor, *others = node.inputs
        fillers = [readers.filler(other) for other in others]
        for offset, piece in self._pieces(donor, readers, node.slot):
            check_copied(
                node, piece, offset, fillers, settings=self._settings, on_read=self._on_read
            )
            write(piece)

    def _check_twins(self, node: TensorNode, readers: Readers) -> None:
        for head, embedding in node.twins:
            filler = readers.filler(head)
            for offset, piece in self._pieces(embedding, readers):
                self._require_equal(embedding, head, piece, offset, filler)

    def _pieces(
        self, one: Input, readers: Readers, target: Slot | None = None
    ) -> Iterator[tuple[int, Bytes]]:
        return pieces(one, readers, target=target, stop=self._stop, on_read=self._on_read)

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
