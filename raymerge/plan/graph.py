"""The nouns of a plan: what is read, what is done to it, where it goes. All frozen, all picklable.

    Input ---.
    Input ----> Step -> Slot          one TensorNode per output tensor
    Input ---'

An input is a `Read`, the bytes of a stored tensor, or `Derived` from such bytes as they are read.

Steps are shared: tensors with the same method and the same resolved knobs hold the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.layout import Slot
from raymerge.kernels.groups import Group, Groups
from raymerge.kernels.threshold import Threshold
from raymerge.methods.free import FreeRule
from raymerge.methods.rules import (
    DeltaRule,
    KeepBand,
    KeepLargest,
    KeepRanked,
    Rescale,
    Scope,
    is_ranked,
)
from raymerge.recipe import Knobs


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of a source."""

    source: int
    """Position in `Plan.sources`."""
    entry: TensorEntry

    @property
    def name(self) -> str:
        """The tensor's name in its source."""
        return self.entry.name

    @property
    def dtype(self) -> DType:
        """Its element type."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def num_elements(self) -> int:
        """Its elements."""
        return self.entry.num_elements

    @property
    def file(self) -> str:
        """The file it lies in."""
        return self.entry.file

    @property
    def read_bytes(self) -> int:
        """What one sweep over it reads."""
        return self.entry.nbytes

    @property
    def reads(self) -> tuple[Read, ...]:
        """The stored tensors it comes from."""
        return (self,)

    @property
    def identity(self) -> tuple[object, ...]:
        """What names it in the plan's digest."""
        return self.source, self.entry.file, self.entry.start

    @property
    def inner(self) -> None:
        """See `Derived.inner`."""
        return

    @property
    def results(self) -> tuple[TensorNode, ...]:
        """See `Derived.results`."""
        return ()

    def scratch_bytes(self, tile_elements: int) -> int:  # noqa: ARG002 - a derived one needs it
        """What a thread needs to fill a tile, besides the tile."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A tensor that is worked out, tile by tile, from stored ones whenever it is read.

    Each kind is a subclass, and `runtime/derived/` has a file for it that does the work.
    """

    source: int
    """Position in `Plan.sources` of the source that it stands for."""
    name: str
    dtype: DType
    shape: tuple[int, ...]
    reads: tuple[Read, ...]
    """The stored tensors it is worked out from, the one with most bytes first."""

    @property
    def num_elements(self) -> int:
        """Its elements."""
        return prod(self.shape)

    @property
    def file(self) -> str:
        """The file that its largest part lies in."""
        return self.reads[0].file

    @property
    def read_bytes(self) -> int:
        """What one sweep over it reads."""
        return sum(read.read_bytes for read in self.reads)

    @property
    def inner(self) -> TensorNode | None:
        """The merge whose result it is, where it is that of another stage."""
        return None

    @property
    def results(self) -> tuple[TensorNode, ...]:
        """The merges of other stages that it is worked out from."""
        return () if self.inner is None else (self.inner,)

    @property
    def how(self) -> str:
        """How it is worked out, in a few words for `plan --graph`."""
        raise NotImplementedError

    @property
    def identity(self) -> tuple[object, ...]:
        """What names it in the plan's digest."""
        stored = tuple(read.identity for read in self.reads)
        return type(self).__name__, self.source, self.name, self.dtype.value, self.shape, stored

    def scratch_bytes(self, tile_elements: int) -> int:
        """Upper bound of what a thread needs to fill a tile, besides the tile."""
        raise NotImplementedError


Input = Read | Derived


@dataclass(frozen=True, slots=True)
class CopyStep:
    """The first input's bytes as they are; any further input has to hold the same bytes."""

    reason: str
    """Why nothing is computed: `keep`, `passthrough`, or the dtype."""

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done, one sweep over the tensor's bytes each."""
        return ("copy",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanStep:
    """A sum of the inputs with scalar coefficients."""

    method: str
    knobs: Knobs
    relative: bool
    """Input 0 is the base, and the vectors are the others minus it."""
    coefficients: tuple[float, ...] | None
    """None where Gram matrices decide them in the run."""
    group: Group = Group.TENSOR
    """What each of those is taken over; for the groups of one tensor see `TensorNode.groups`."""

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done, one sweep over the tensor's bytes each."""
        return ("span",) if self.coefficients is not None else ("gram", "span")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaStep:
    """Task vectors of inputs 1.. over input 0, sparsified, fused and added to it."""

    relative: ClassVar[bool] = True
    method: str
    knobs: Knobs
    rule: DeltaRule

    @property
    def selects(self) -> bool:
        """Whether magnitudes have to be counted before anything can be kept."""
        keep = self.rule.keep
        trims = isinstance(keep, KeepLargest | KeepBand)
        return trims and any(density < 1 for density in keep.density)

    @property
    def ranks(self) -> bool:
        """Whether entries are ranked within whole rows."""
        keep = self.rule.keep
        return isinstance(keep, KeepRanked) and any(map(is_ranked, keep.density))

    @property
    def surveyed(self) -> bool:
        """Whether the thresholds are the model's, fixed by a survey before the merge."""
        keep = self.rule.keep
        return self.selects and isinstance(keep, KeepLargest) and keep.scope is Scope.MODEL

    @property
    def normed(self) -> bool:
        """Whether L1 norms have to be summed before the rescaling is known."""
        return self.rule.rescale is Rescale.L1

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done, one sweep over the tensor's bytes each."""
        counted = ("histogram",) if self.selects and not self.surveyed else ()
        return (*counted, *(("norms",) if self.normed else ()), "delta")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeStep:
    """Reductions and a last pass of a method's own over input 0, the base, and the others."""

    relative: ClassVar[bool] = True
    method: str
    knobs: Knobs
    rule: FreeRule

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done, one sweep over the tensor's bytes each."""
        return tuple(self.rule.passes)


Step = CopyStep | SpanStep | DeltaStep | FreeStep

STATS = "stats"
"""The pass that norms and cosines take, first of all, where no other gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNode:
    """One output tensor: what is read, how it is merged, where it goes."""

    slot: Slot
    step: Step
    inputs: tuple[Input, ...]
    """In recipe order. The base comes first for base-relative steps."""
    twins: tuple[tuple[Input, Input], ...] = ()
    """Pairs of tensors of one source whose bytes must agree: a tied head and its embedding."""
    stats: bool = False
    """Whether norms and cosines of what is merged are wanted for the ledger."""

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done, one sweep over the inputs' bytes each."""
        return (STATS, *self.step.passes) if self.stats and not self.has_gram else self.step.passes

    @property
    def has_gram(self) -> bool:
        """Whether the step takes the inner products of the whole tensor anyway."""
        step = self.step
        return (
            isinstance(step, SpanStep) and step.coefficients is None and step.group is Group.TENSOR
        )

    @property
    def vectors(self) -> int:
        """Inputs, or task vectors where the merge is relative to a base, which comes first."""
        return len(self.inputs) - (not isinstance(self.step, CopyStep) and self.step.relative)

    @property
    def groups(self) -> Groups:
        """Rows or columns of the tensor with coefficients of their own, or the whole."""
        kind = self.step.group if isinstance(self.step, SpanStep) else Group.TENSOR
        return Groups.of(kind, self.slot.shape)

    @property
    def input_bytes(self) -> int:
        """What one sweep over all inputs reads."""
        return sum(one.read_bytes for one in self.inputs)

    @property
    def held_bytes(self) -> int:
        """Bytes of all inputs in memory."""
        return sum(one.dtype.num_bytes(one.shape) for one in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a worker is handed: a run of whole output tensors within a shard."""

    number: int
    shard: str
    shard_bytes: int
    """Length of the shard's file."""
    start: int
    stop: int
    """Half-open byte range of the shard that this unit stands for. The first one begins at 0: the
    header is in the file before a unit is begun."""
    nodes: tuple[TensorNode, ...]
    thresholds: tuple[Threshold, ...] = ()
    """The model's, one per source, once a survey has fixed them."""
    ties_before: tuple[int, ...] = ()
    """Entries tied at those thresholds in the units before this one, one per source."""

    @property
    def nbytes(self) -> int:
        """Bytes this unit writes."""
        return self.stop - self.start

    @property
    def is_whole_shard(self) -> bool:
        """Whether there is no other unit in its shard."""
        return (self.start, self.stop) == (0, self.shard_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes of its inputs, each counted once."""
        return sum(node.input_bytes for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedAdapter:
    """What a LoRA adapter does to a source."""

    source: str
    """Label of the source that has it."""
    ranks: tuple[int, ...]
    """Those that occur, ascending."""
    scalings: tuple[float, ...]
    """Likewise."""
    adapted: int
    """Tensors that B @ A is added to."""
    replaced: int
    """Tensors that the adapter holds whole, such as biases and modules trained with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSource:
    """A source as the plan pinned it."""

    label: str
    location: str
    revision: str | None
    pins: Mapping[str, Pin]
    side_files: tuple[str, ...]
    tensor_bytes: int
    side_pins: Mapping[str, Pin] = field(default_factory=dict)
    """Identity of the side files."""
    adapter: AppliedAdapter | None = None
    """What it does to a source, if it is an adapter."""
