"""Run a unit of several trials: read once, merge for each, write at each one's address.

    inputs of all trials, each once
      | reductions, shared by merges that ask the same of the same inputs
      | one last sweep: every tile goes through every distinct merge
      v
    bytes of a merge -> every trial that it is the merge of -> a receipt each

A trial's bytes are those of its own merge: the same passes in the same order. What goes wrong for
one trial alone, in its arithmetic or at its destination, ends that trial alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from threading import Event
from time import perf_counter, time
from typing import TYPE_CHECKING

from raymerge.checkpoint.layout import Slot
from raymerge.errors import ClusterError, RaymergeError, SourceError, StorageError
from raymerge.kernels.tile import Bytes, Kernels, Tile
from raymerge.methods.rules import KeepDrawn, KeepRanked
from raymerge.plan.graph import CopyStep, DeltaStep, Input, TensorNode, Unit
from raymerge.plan.joint import JointTensor, joint
from raymerge.plan.needs import merge_needs
from raymerge.plan.ranges import Need
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.copies import check_copied, pieces, require_equal
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.readers import Readers
from raymerge.runtime.receipt import Receipt, TensorReceipt
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.shards import unit_writer
from raymerge.runtime.stopping import StoppedError
from raymerge.runtime.tensor import Merging, Reductions, TensorMerge

if TYPE_CHECKING:
    from hashlib import _Hash

_log = logging.getLogger(__name__)

TRIES = 4
"""Of a unit that a store does not take, each after the store's own patience."""
ENDS_ALL = (SourceError, ClusterError, StoppedError)
"""What is not one trial's own error."""


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
    arena: Callable[[], Arena]
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
    outputs = [_Output(own, shop.trials[trial], shop) for trial, own in pairs]
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


class _Output:
    """One trial's unit on its way to its shard."""

    def __init__(self, unit: Unit, settings: RunSettings, shop: Shop) -> None:
        self.unit = unit
        self.settings = settings
        self.error: RaymergeError | None = None
        self._began, self._clock = time(), perf_counter()
        self._shop = shop
        self._tensors: list[TensorReceipt] = []
        self._receipt: Receipt | None = None
        self._whole: _Hash | None = None
        with self.failing_alone():
            self._writer = unit_writer(settings.units_at, unit, settings.access)
            self._whole = hashlib.sha256(self._writer.head) if unit.is_whole_shard else None

    def failing_alone(self) -> _Alone:
        """Take an error of this trial as its own, and do nothing more for it."""
        return _Alone([self])

    def write(self, piece: Bytes) -> None:
        """The next bytes."""
        with self.failing_alone():
            self._writer.write(piece.data)
            if self._whole is not None:
                self._whole.update(piece.data)
            self._shop.on_progress(Progress(written_bytes=piece.nbytes))

    def end_tensor(self, receipt: TensorReceipt) -> None:
        """A tensor is written."""
        self._tensors.append(receipt)

    def finish(self) -> None:
        """Return once all is safe."""
        if self.error is not None:
            return
        with self.failing_alone():
            shard_sha256 = self._whole.hexdigest() if self._whole else None
            stored = self._writer.finish(shard_sha256)
            self._receipt = Receipt(
                unit=self.unit.number,
                shard=self.unit.shard,
                start=self.unit.start,
                stop=self.unit.stop,
                head_sha256=hashlib.sha256(self._writer.head).hexdigest(),
                tensors=tuple(self._tensors),
                shard_sha256=shard_sha256,
                stored=stored,
                worker=self._shop.name,
                began=self._began,
                seconds=round(perf_counter() - self._clock, 6),
            )

    def result(self) -> Receipt | RaymergeError:
        """Its receipt, or what it failed with."""
        result = self.error or self._receipt
        assert result is not None, self.unit.shard
        return result

    def fail(self, error: RaymergeError) -> None:
        """Write nothing more."""
        # Without the frames that it came through: they hold the thread's buffers.
        error.__cause__ = error.__context__ = None
        self.error = self.error or error.with_traceback(None)
        self.close()

    def close(self) -> None:
        """Let go of the shard; what is not finished leaves nothing that would be trusted."""
        if hasattr(self, "_writer"):
            writer = self._writer
            del self._writer
            with suppress(StorageError):
                writer.__exit__(None, None, None)


class _Alone:
    """Where errors end some trials and not the others."""

    def __init__(self, outputs: Sequence[_Output]) -> None:
        self._outputs = outputs

    def __enter__(self) -> None:
        """See above."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, RaymergeError) or isinstance(error, ENDS_ALL):
            return False
        for output in self._outputs:
            output.fail(error)
        return True


class _Merge:
    """One merge of a tensor, for all trials that have it."""

    def __init__(self, node: TensorNode, settings: RunSettings) -> None:
        self.node = node
        self.settings = settings
        self.outputs: list[_Output] = []
        self.places: tuple[int, ...] = ()
        """Of its inputs among those of all merges."""
        self.merging: Merging | None = None
        self.merge: TensorMerge | None = None
        self._hash = hashlib.sha256()
        self._clock = perf_counter()

    @property
    def wanted(self) -> bool:
        """Whether a trial that it is for has not failed."""
        return any(output.error is None for output in self.outputs)

    def alone(self) -> _Alone:
        """Where its errors end its own trials."""
        return _Alone(self.outputs)

    def apply(self, tile: Tile, out: Bytes) -> None:
        """Merge a tile of its inputs, and write it for each trial."""
        assert self.merging is not None, self.node.slot
        self.merging.merge(tile, out)
        self.write(out)

    def write(self, piece: Bytes) -> None:
        """Write the next bytes for each trial."""
        self._hash.update(piece.data)
        for output in self.outputs:
            if output.error is None:
                output.write(piece)

    def end(self) -> None:
        """The tensor is written."""
        found = self.merge.statistics if self.merge else None
        receipt = TensorReceipt(
            sha256=self._hash.hexdigest(),
            seconds=round(perf_counter() - self._clock, 6),
            norms=found.norms if found else None,
            cosines=found.cosines if found else None,
        )
        for output in self.outputs:
            output.end_tensor(receipt)


class _Tensor:
    """One tensor of all trials."""

    def __init__(
        self,
        nodes: Sequence[TensorNode],
        outputs: Sequence[_Output],
        readers: Readers,
        shop: Shop,
    ) -> None:
        self._readers = readers
        self._shop = shop
        self._merges = _distinct(nodes, outputs)
        self._reductions = Reductions()

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
        for one in self._merges:
            one.end()

    def _sweep(self, merges: Sequence[_Merge], tensor: JointTensor) -> None:
        budget = self._shop.settings.budget
        inputs = Inputs(
            tensor.node,
            self._readers,
            self._shop.arena(),
            budget,
            stop=self._shop.stop,
            on_read=self._shop.on_read,
            sweeping=tensor.sweeping(budget),
        )
        for one in merges:
            one.places = tensor.positions(one.node)
            with one.alone():
                one.merge = TensorMerge(
                    one.node,
                    inputs.of(one.places),
                    self._shop.kernels,
                    one.settings,
                    self._reductions,
                )
                one.merging = one.merge.prepared(None)
        width = tensor.node.slot.dtype
        for first, count in inputs.places():
            out = inputs.out[: width.num_bytes((count,))]
            for one in merges:
                if one.wanted:
                    with one.alone():
                        one.apply(inputs.of(one.places).tile(first, count), out)

    def _copy(self, copied: _Merge) -> None:
        node, shop = copied.node, self._shop
        donor, *others = node.inputs
        fillers = [self._readers.filler(other) for other in others]
        for offset, piece in self._pieces(donor, node.slot):
            with copied.alone():
                check_copied(
                    node, piece, offset, fillers, settings=copied.settings, on_read=shop.on_read
                )
                copied.write(piece)
            if not copied.wanted:
                return

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


def _distinct(nodes: Sequence[TensorNode], outputs: Sequence[_Output]) -> list[_Merge]:
    """The merges of a tensor that differ, each with the trials it is for."""
    found: dict[object, _Merge] = {}
    for node, output in zip(nodes, outputs, strict=True):
        if output.error is not None:
            continue
        key = id(node.step), id(node.inputs), node.stats, output.settings.nan, _drawn(node, output)
        merge = found.setdefault(key, _Merge(node, output.settings))
        merge.outputs.append(output)
    return list(found.values())


def _drawn(node: TensorNode, output: _Output) -> object:
    """What draws depend on besides the step and the tensor's name."""
    step = node.step
    if not (isinstance(step, DeltaStep) and isinstance(step.rule.keep, KeepDrawn | KeepRanked)):
        return None
    labels = tuple(output.settings.sources[one.source].label for one in node.inputs[1:])
    return output.settings.seed, labels
