"""Run a unit of several trials: read once, merge for each, write at each one's address.

    inputs of all trials, each once
      | reductions, shared by merges that ask the same of the same inputs
      | one last sweep: every tile goes through every distinct merge, alike ones in one pass
      v
    bytes of a merge -> every trial that it is the merge of -> a receipt each

A trial's bytes are those of its own merge: the same passes in the same order. What goes wrong for
one trial alone, in its arithmetic or at its destination, ends that trial alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from threading import Event

from raymerge.checkpoint.layout import Slot
from raymerge.errors import RaymergeError, StorageError
from raymerge.kernels.feed import Flight
from raymerge.kernels.tile import Bytes, Kernels, Tile
from raymerge.plan.graph import CopyStep, Input, TensorNode
from raymerge.plan.joint import JointTensor, joint
from raymerge.plan.needs import merge_needs
from raymerge.plan.ranges import Need
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.copies import check_copied, pieces, require_equal
from raymerge.runtime.device import Desk
from raymerge.runtime.hashing import TensorHashes
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.readers import Readers
from raymerge.runtime.receipt import Receipt
from raymerge.runtime.reductions import Reductions
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.tensor import TensorMerge
from raymerge.runtime.trial_merge import LastPass, TrialMerge, distinct, last_passes
from raymerge.runtime.trial_output import Output

_log = logging.getLogger(__name__)

TRIES = 4
"""Of a unit that a store does not take, each after the store's own patience."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """What a worker merges with."""

    settings: RunSettings
    trials: Sequence[RunSettings]
    """Of each trial of the run."""
    kernels: Kernels
    readers: Readers
    during: Callable[[Iterable[Need]], AbstractContextManager[Readers]]
    """The readers of a unit in progress."""
    desk: Callable[[], Desk]
    stop: Event
    on_progress: OnProgress
    name: str
    """Of the worker, as receipts have it."""

    def on_read(self, nbytes: int) -> None:
        """Report bytes read."""
        self.on_progress(Progress(read_bytes=nbytes))


def merge_trials(unit: SweepUnit, shop: Shop) -> list[Receipt | RaymergeError]:
    """See `Worker.merge_trials`."""
    ended: dict[int, Receipt | RaymergeError] = {}
    for left in reversed(range(TRIES)):
        todo = unit.without(ended)
        if not todo.trials:
            break
        for trial, result in zip(todo.trials, _merge(todo, shop), strict=True):
            again = isinstance(result, StorageError) and result.retryable and left
            if not again or shop.stop.is_set():
                ended[trial] = result
                continue
            _log.warning("writing %s again: %s", unit.shard, result)
            shop.on_progress(Progress(retries=1))
    return [ended[trial] for trial in unit.trials]


def _merge(unit: SweepUnit, shop: Shop) -> list[Receipt | RaymergeError]:
    pairs = zip(unit.trials, unit.units, strict=True)
    outputs = [
        Output(own, shop.trials[trial], worker=shop.name, on_progress=shop.on_progress)
        for trial, own in pairs
    ]
    columns = list(zip(*(own.nodes for own in unit.units), strict=True))
    try:
        with shop.during(merge_needs(map(_lead, columns), shop.settings.budget)) as readers:
            for number, nodes in enumerate(columns):
                readers.reach(number)
                if number + 1 < len(columns):
                    readers.will_need(_lead(columns[number + 1]).inputs)
                _Tensor(nodes, outputs, readers, shop).merge()
        for output in outputs:
            output.finish()
        # Before the receipts: bytes of a source that changed must not be trusted by a later run.
        shop.readers.check_unchanged()
        return [output.result() for output in outputs]
    finally:
        for output in outputs:
            output.close()


def _lead(nodes: Sequence[TensorNode]) -> TensorNode:
    """One node with all inputs, for whoever wants to know what is read."""
    tensor = joint(nodes)
    return nodes[0] if tensor is None else tensor.node


class _Tensor:
    """One tensor of all trials."""

    def __init__(
        self,
        nodes: Sequence[TensorNode],
        outputs: Sequence[Output],
        readers: Readers,
        shop: Shop,
    ) -> None:
        self._readers = readers
        self._shop = shop
        self._merges = distinct(nodes, outputs)
        self._reductions = Reductions()
        self._hashes_itself = any(output.hashes for output in outputs)

    def merge(self) -> None:
        """Merge and write it for every trial that has not failed."""
        self._check_twins()
        copies = [one for one in self._merges if isinstance(one.node.step, CopyStep)]
        for copied in copies:
            self._copy(copied)
        merges = [one for one in self._merges if one not in copies]
        tensor = joint([one.node for one in merges])
        if tensor is not None:
            self._sweep(merges, tensor)

    def _sweep(self, merges: Sequence[TrialMerge], tensor: JointTensor) -> None:
        feed = self._shop.desk().feed
        inputs = self._inputs(tensor, outputs=len(merges))
        for position, one in enumerate(merges):
            one.places = tensor.positions(one.node)
            one.room = partial(inputs.room, output=position)
            with one.alone():
                one.merge = TensorMerge(
                    one.node,
                    inputs.of(one.places),
                    self._shop.kernels,
                    one.settings,
                    self._reductions,
                    feed=feed,
                )
                one.merging = one.merge.prepared(None)
        passes = last_passes(merges, self._shop.kernels)
        hashed = [] if self._hashes_itself else merges
        hashes = TensorHashes(len(hashed))

        def end(tile: Tile) -> None:
            hashes.update([one.room(tile) for one in hashed])

        feed.fly(_flights(inputs, passes, end))
        for one, sha256 in zip_longest(merges, hashes.hexdigests()):
            one.end(sha256)

    def _inputs(self, tensor: JointTensor, *, outputs: int) -> Inputs:
        shop = self._shop
        return Inputs(
            tensor.node,
            self._readers,
            shop.desk().arena,
            shop.settings.budget,
            stop=shop.stop,
            on_read=shop.on_read,
            sweeping=tensor.sweeping(shop.settings.budget),
            outputs=outputs,
            depth=shop.desk().feed.depth,
        )

    def _copy(self, copied: TrialMerge) -> None:
        node, shop = copied.node, self._shop
        donor, *others = node.inputs
        fillers = [self._readers.filler(other) for other in others]
        whole = hashlib.sha256()
        for offset, piece in self._pieces(donor, node.slot):
            with copied.alone():
                check_copied(
                    node, piece, offset, fillers, settings=copied.settings, on_read=shop.on_read
                )
                copied.write(piece)
            if not copied.wanted:
                return
            if not self._hashes_itself:
                whole.update(piece.data)
        copied.end(whole.hexdigest())

    def _check_twins(self) -> None:
        pairs = {id(pair): pair for one in self._merges for pair in one.node.twins}
        for head, embedding in pairs.values():
            filler = self._readers.filler(head)
            for offset, piece in self._pieces(embedding):
                require_equal(
                    embedding,
                    head,
                    piece,
                    offset,
                    filler=filler,
                    sources=self._shop.settings.sources,
                    on_read=self._shop.on_read,
                )

    def _pieces(self, one: Input, target: Slot | None = None) -> Iterator[tuple[int, Bytes]]:
        shop = self._shop
        return pieces(one, self._readers, target=target, stop=shop.stop, on_read=shop.on_read)


def _flights(
    inputs: Inputs, passes: Sequence[LastPass], end: Callable[[Tile], None]
) -> Iterator[Flight[list[int]]]:
    """Every tile, once for each last pass that it goes through; `end` is told of it after those."""
    for number, (first, count) in enumerate(inputs.places()):
        found = [(one, one.tile(inputs, first, count, number)) for one in passes]
        ready = [(one, tile) for one, tile in found if tile is not None]
        for one, tile in ready[:-1]:
            yield Flight(tile, one.apply, one.end)
        for one, tile in ready[-1:]:
            yield Flight(tile, one.apply, partial(_end_both, one, end))


def _end_both(one: LastPass, end: Callable[[Tile], None], tile: Tile, reports: list[int]) -> None:
    one.end(tile, reports)
    end(tile)
