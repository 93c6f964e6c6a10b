"""Compare sources without merging them: every file is read once, tile by tile, on threads.

catalogs -> views -> which tensors can be compared, and for whom -> one fused pass over each
    -> figures per layer and in total -> findings

Memory is a tile per source and thread, whatever the models' size. Sums are float64 in the order of
names, so no digit depends on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from threading import Event, local
from time import perf_counter

from raymerge.checkpoint.catalog import Catalog, read_catalog
from raymerge.checkpoint.config_diff import config_differences
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.layout import Slot
from raymerge.checkpoint.ties import is_embedding, is_head
from raymerge.errors import PlanError
from raymerge.kernels.compare import Comparison
from raymerge.kernels.tile import ALL_FINITE
from raymerge.plan.dequantised import dequantised
from raymerge.plan.experts import in_one_layout
from raymerge.plan.graph import CopyStep, Input, PlannedSource, TensorNode
from raymerge.plan.memory import LARGEST_TILE, Budget
from raymerge.plan.needs import merge_needs
from raymerge.plan.ranges import WINDOW_BYTES
from raymerge.plan.views import View, views
from raymerge.recipe.resolve import layer_of
from raymerge.runtime.facts import source_facts
from raymerge.runtime.findings import findings
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.inspection import (
    GroupFigures,
    Inspection,
    Sums,
    TensorFigures,
    Uncompared,
)
from raymerge.runtime.readers import Readers
from raymerge.storage import SourceFolder

_MATRIX = 2
_BUDGET = Budget(thread_bytes=0, tile_elements=LARGEST_TILE, hold=False, window_bytes=WINDOW_BYTES)
_OUTSIDE = ("embeddings", "other", "head")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that can be compared."""

    name: str
    members: tuple[int, ...]
    """Positions of the sources, the base not counted."""
    inputs: tuple[Input, ...]
    """The base's first, if there is a base."""


def inspect(
    folders: Sequence[SourceFolder], labels: Sequence[str], *, relative: bool, threads: int
) -> Inspection:
    """Compare the checkpoints of some folders; see `raymerge.inspect`.

    Args:
        folders: The base first, if there is one.
        labels: What messages call them.
        relative: Whether the first is the base.
        threads: Tensors in progress at once.
    """
    began = perf_counter()
    if len(folders) < 2:  # noqa: PLR2004
        raise PlanError(f"{labels[0]} alone is nothing to compare; give --base, or another source")
    with ThreadPoolExecutor(len(folders)) as pool:
        catalogs = list(pool.map(lambda f, label: read_catalog(f, label=label), folders, labels))
    # As a merge would see them: widened, and the experts of all in the layout of the first.
    seen = in_one_layout(dequantised(views(catalogs), catalogs), donor=labels[0])
    candidates, uncompared = match_up(seen, relative=relative)
    by_label = dict(zip(labels, folders, strict=True))
    facts = tuple(
        source_facts(catalog, by_label[catalog.label], is_base=relative and position == 0)
        for position, catalog in enumerate(catalogs)
    )
    sources = labels[1:] if relative else labels
    tally = _Tally(sources, relative=relative)
    bytes_read = 0
    readers = Readers(
        [_pinned(catalog) for catalog in catalogs],
        open_source=lambda source, _: by_label[source.label],
    )
    measured = _measure(readers, labels, candidates, relative=relative, threads=threads)
    for found, lost, num_read in measured:
        bytes_read += num_read
        if found:
            tally.add(found, is_matrix=len(candidates[found.name].inputs[0].shape) >= _MATRIX)
        if lost:
            uncompared.append(lost)
    differences = config_differences(catalogs, by_label)
    total, matrices = tally.total.figures("total"), tally.matrices.figures("matrices")
    return Inspection(
        base=labels[0] if relative else None,
        sources=facts,
        total=total,
        groups=tally.groups(),
        uncompared=tuple(uncompared),
        differences=differences,
        findings=findings(facts, total, matrices, uncompared, differences),
        bytes_read=bytes_read,
        seconds=round(perf_counter() - began, 3),
    )


def match_up(
    found: Sequence[View], *, relative: bool
) -> tuple[dict[str, Candidate], list[Uncompared]]:
    """Which tensors can be compared, and why others cannot. Pure.

    A tensor is compared for each source that has it in the shape of the base's or, without a base,
    of the first source that has it.
    """
    candidates: dict[str, Candidate] = {}
    uncompared: list[Uncompared] = []
    for name in dict.fromkeys(name for view in found for name in view.tensors):
        holders = [i for i, view in enumerate(found) if name in view.tensors]
        if relative and holders[0] != 0:
            uncompared.extend(Uncompared(found[i].label, name, "not in the base") for i in holders)
            continue
        fitting = list(_fitting(name, found, holders, uncompared))
        compared = fitting[1:] if relative else fitting
        if len(fitting) < 2:  # noqa: PLR2004 - nobody to compare with
            continue
        members = tuple(i - relative for i in compared)
        inputs = tuple(found[i].tensors[name] for i in fitting)
        candidates[name] = Candidate(name, members, inputs)
    return candidates, uncompared


def _fitting(
    name: str, found: Sequence[View], holders: Sequence[int], uncompared: list[Uncompared]
) -> Iterator[int]:
    """Positions of the views whose tensor can be compared with the first one's."""
    label, first = found[holders[0]].label, found[holders[0]].tensors[name]
    if not first.dtype.mergeable:
        reason = f"holds {first.dtype} values, which are not weights"
        uncompared.append(Uncompared(label, name, reason))
        return
    for i, view in enumerate(found):
        one = view.tensors.get(name)
        if one is None:
            reason = f"not there; {label} has it"
        elif not one.dtype.mergeable:
            reason = f"holds {one.dtype} values, which are not weights"
        elif one.shape != first.shape:
            reason = f"its shape is {list(one.shape)}, that of {label} is {list(first.shape)}"
        else:
            yield i
            continue
        uncompared.append(Uncompared(view.label, name, reason))


class _Tally:
    """Sums per layer, in total, and over the matrices, where norms of 1 cannot hide anything."""

    def __init__(self, labels: Sequence[str], *, relative: bool) -> None:
        self._new: Callable[[], Sums] = lambda: Sums(labels, relative=relative)
        self.total = self._new()
        self.matrices = self._new()
        self._groups: dict[tuple[str, int | None], Sums] = {}

    def add(self, found: TensorFigures, *, is_matrix: bool) -> None:
        """Count a tensor where it belongs."""
        group = self._groups.setdefault(_group(found.name), self._new())
        for sums in (self.total, group, *([self.matrices] if is_matrix else [])):
            sums.add(found)

    def groups(self) -> tuple[GroupFigures, ...]:
        """Embeddings, the layers stack by stack, what is left, head."""
        stacks = list(dict.fromkeys(stack for stack, layer in self._groups if layer is not None))

        def rank(key: tuple[str, int | None]) -> tuple[int, int, int]:
            stack, layer = key
            if layer is not None:
                return 1, stacks.index(stack), layer
            return (0, 0, 0) if stack == _OUTSIDE[0] else (2, _OUTSIDE.index(stack), 0)

        return tuple(self._figures(key) for key in sorted(self._groups, key=rank))

    def _figures(self, key: tuple[str, int | None]) -> GroupFigures:
        stack, layer = key
        if layer is None:
            return self._groups[key].figures(stack)
        name = f"{stack}.{layer}" if stack else str(layer)
        return self._groups[key].figures(name, stack, layer)


def _group(name: str) -> tuple[str, int | None]:
    if layer := layer_of(name):
        return layer
    return (_OUTSIDE[0] if is_embedding(name) else _OUTSIDE[2] if is_head(name) else "other", None)


Measured = tuple[TensorFigures | None, Uncompared | None, int]
"""A tensor's figures, or why there are none, and the bytes read."""


def _measure(
    readers: Readers,
    labels: Sequence[str],
    candidates: dict[str, Candidate],
    *,
    relative: bool,
    threads: int,
) -> Iterator[Measured]:
    """Every candidate in order, whatever the order in which they are finished."""
    stop = Event()
    meter = _Meter(readers, labels, relative=relative, stop=stop)
    pool = ThreadPoolExecutor(threads)
    with closing(meter):
        try:
            yield from pool.map(meter.measure, candidates.values())
            meter.check_unchanged()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Meter:
    """Measures tensors, for any number of threads at once; each has an arena of its own."""

    def __init__(
        self, readers: Readers, labels: Sequence[str], *, relative: bool, stop: Event
    ) -> None:
        self._labels = labels
        self._readers = readers
        self._relative = relative
        self._stop = stop
        self._thread = local()

    def measure(self, candidate: Candidate) -> Measured:
        """Count one tensor."""
        if not hasattr(self._thread, "arena"):
            self._thread.arena = Arena()
        reads: list[int] = []
        shape = candidate.inputs[0].shape
        node = TensorNode(
            slot=Slot(candidate.name, DType.F32, shape, 0, 0),
            step=CopyStep("compared"),
            inputs=candidate.inputs,
        )
        counted = Comparison.new(len(candidate.inputs), relative=self._relative)
        needs = merge_needs([node], _BUDGET)
        with self._readers.during(needs, _BUDGET, stop=self._stop, on_read=reads.append) as readers:
            inputs = Inputs(
                node, readers, self._thread.arena, _BUDGET, stop=self._stop, on_read=reads.append
            )
            for tile in inputs.sweep():
                bad = counted.add(tile)
                if bad != ALL_FINITE:
                    label = self._labels[candidate.inputs[bad].source]
                    return None, Uncompared(label, candidate.name, "holds NaN or Inf"), sum(reads)
        gram, base_square = counted.gram()
        figures = TensorFigures(
            name=candidate.name,
            members=candidate.members,
            elements=inputs.elements,
            gram=gram,
            base_square=base_square,
            entries=counted.entries,
            pairs=counted.pairs,
            largest=counted.largest,
        )
        return figures, None, sum(reads)

    def check_unchanged(self) -> None:
        """Raise SourceError if a source changed while it was read."""
        self._readers.check_unchanged()

    def close(self) -> None:
        """Close the sources' files."""
        self._readers.close()


def _pinned(catalog: Catalog) -> PlannedSource:
    return PlannedSource(
        label=catalog.label,
        location=catalog.location,
        revision=None,
        pins=catalog.pins,
        side_files=catalog.side_files,
        tensor_bytes=sum(entry.nbytes for entry in catalog.tensors.values()),
    )
