"""What a worker process will hold at most, kept under the budget by choosing tiles and re-reads.

A worker runs several units at once, one per thread, and a thread works on one tensor at a time:

    process = interpreter and libraries + the plan (in the driver) + threads * working set
    working set = a tile of every input and of the output, and the method's counters;
                  a tensor that is swept more than once is held whole instead, if that fits;
                  for a device, as many tiles as its ring has under way, and not one;
                  of remote sources, what is fetched and not used yet: the window;
                  for a store, what of a shard is on its way there: the upload

What does not fit whole is read again for every pass; so is everything where reading again is
cheaper than keeping, as it is from a local file that the kernel has just cached. What does not fit
as the smallest tile is a PlanError with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raymerge.errors import PlanError
from raymerge.kernels.constants import BLOCK, HIGH_BINS, LANES, LOW_BINS, STRIPES
from raymerge.kernels.groups import Group
from raymerge.kernels.rows import rank_bytes, rows_of
from raymerge.methods.rules import KeepBand
from raymerge.plan.graph import CopyStep, DeltaStep, Derived, FreeStep, Read, SpanStep, TensorNode
from raymerge.plan.ranges import LEAST_WINDOW_BYTES, WINDOW_BYTES
from raymerge.plan.tiles import device_bytes, tile_bytes, tile_of
from raymerge.units import format_bytes

PROCESS_BYTES = 256 * 2**20
"""Interpreter, numpy, numba and the compiled kernels. Whole processes measured 70 to 160 MiB of
anonymous memory at the end of a merge, their tiles included."""
TORCH_BYTES = 512 * 2**20
"""What torch adds to a process that needs it, its CUDA context's host side included: an allowance,
not measured yet."""
PLAN_BYTES_PER_TENSOR = 1200
"""Room for a node with its slot, or for one read. Planning 89,939 tensors of four sources took
0.30 GiB in all, some 600 bytes for each."""
THREAD_BYTES = 8 * 2**20
"""Stack, hash state and the small arrays around a thread's tiles."""

LARGEST_TILE = 2**18
"""A tile of four bfloat16 inputs is 2 MiB then. Smaller ones stay in a core's own cache, but every
tile costs some 50 microseconds of Python, for which threads wait on each other: a linear merge on
two threads took 3.6 s in tiles of 2**16 elements, 2.3 s in tiles of 2**18."""
SMALLEST_TILE = 2**14
CACHED_BYTES = 4 * 2**20
"""Inputs of a tensor that stay in the caches between sweeps: they are held whatever else is not."""
SAMPLE_ELEMENTS = 2**18
"""Entries that name the bin of a threshold before all are counted. They place a density to within a
fifth of a percent, and a bin is wider."""
WINDOW_SHARE = 4
"""The window is at most one part in so many of what a thread may use: the rest can hold tensors,
which saves whole sweeps."""
PART_BYTES = 8 * 2**20
"""Of an upload. A store acknowledges each part, so that a failure costs one."""
MAX_PARTS = 10_000
"""Amazon's and Google's limit; Azure's is higher."""
PARTS_IN_FLIGHT = 4
"""Parts of one upload on their way at once: 100 ms for each are 320 MB/s then."""
SELECTED_VALUES = 4
"""Bins that the histogram of a free method counts inside at most."""
SCRATCH_BYTES = 2**17
"""What kernels of free methods have of float64 and spare float32 blocks."""
DEVICE_TILE = 2**24
"""The tile to begin with on CUDA, where any tile costs many launches. Not measured yet."""
BUFFER_BYTES = 2**12
"""What buffers of an input lose at most where they begin at cache lines, in whole pages."""
RING_DEPTH = 3
"""Tiles under way between a thread and a CUDA device: one is read and sent while another is
computed and a third comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one thread may use, and the tiles that follow from it."""

    thread_bytes: int
    tile_elements: int
    hold: bool = True
    """Whether what fits is kept between sweeps; else a large tensor is read again for each."""
    window_bytes: int = 0
    """What is fetched ahead of a thread, besides; 0 where all sources are files."""
    depth: int = 1
    """Tiles in memory at once: those of a device's ring."""

    def holds(self, node: TensorNode) -> bool:
        """Whether a tensor that is swept more than once stays in memory between its passes."""
        held = self._held_bytes(node)
        # What was worked out as it was read costs more to work out again than to keep.
        derived = any(isinstance(one, Derived) for one in node.inputs)
        wanted = self.hold or derived or node.held_bytes <= CACHED_BYTES
        return wanted and len(node.passes) > 1 and held <= self.thread_bytes

    def sampled(self, node: TensorNode) -> int:
        """Entries that are read to name the bin of a threshold, before a sweep counts inside it.

        A sample names the wrong bin for some tensors, which takes two sweeps more. Files bear
        that; over a network what is read has to be what was planned, so all entries are looked at.
        What is held is its own sample.
        """
        if not samples(node) or self.holds(node):
            return 0
        elements = node.inputs[0].num_elements
        return elements if self.window_bytes else min(elements, SAMPLE_ELEMENTS)

    def inside(self, node: TensorNode, inner: TensorNode) -> Budget:
        """The budget of a stage's result among the inputs of `node`.

        What it cannot do without is part of what `node` works with; what is left of the budget is
        shared evenly by all results among the inputs.
        """
        results = sum(one.inner is not None for one in node.inputs)
        spare = 0 if isinstance(node.step, CopyStep) else self.thread_bytes - self._own_bytes(node)
        needed = working_bytes(inner, self.tile_elements)
        # Its tiles are merged one by one, whatever becomes of them.
        return replace(self, thread_bytes=needed + max(0, spare) // results, depth=1)

    def peak_bytes(self, node: TensorNode) -> int:
        """Bytes of a thread at work on a tensor, what is held of it and inside it included."""
        peak = self._own_bytes(node)
        for one in node.inputs:
            if one.inner is not None:
                needed = working_bytes(one.inner, self.tile_elements)
                peak += self.inside(node, one.inner).peak_bytes(one.inner) - needed
        return peak

    def buffer_bytes(self, node: TensorNode) -> int:
        """Bytes of a thread's buffers for a tensor: what a device copies from and to."""
        if isinstance(node.step, CopyStep):
            return 0
        held = self.holds(node)
        tile = tile_bytes(node, self.tile_elements, outputs_alone=held)
        apart = BUFFER_BYTES * (len(node.inputs) + 1)
        return self.depth * tile + (node.held_bytes if held else 0) + apart

    def _own_bytes(self, node: TensorNode) -> int:
        if self.holds(node):
            return self._held_bytes(node)
        return working_bytes(node, self.tile_elements, depth=self.depth)

    def _held_bytes(self, node: TensorNode) -> int:
        outs = (self.depth - 1) * tile_bytes(node, self.tile_elements, outputs_alone=True)
        return node.held_bytes + working_bytes(node, self.tile_elements) + outs


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The projection that a plan prints, in bytes of one worker process."""

    budget_bytes: int
    threads: int
    budget: Budget
    projected_host_bytes: int
    pinned_host_bytes: int
    """Of that, the buffers that a CUDA device copies from and to, whose pages stay where they are;
    0 where the CPU merges."""
    projected_device_bytes: int
    """Of one CUDA device; 0 where the CPU merges."""
    held_tensors: int
    """Swept more than once from memory."""
    reread_tensors: int
    """Swept more than once from their files, since they do not fit."""
    reread_bytes: int
    """What those sweeps read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeping:
    """How a thread goes over the inputs of a tensor."""

    tile_elements: int
    held: bool
    """Whether all is kept between sweeps."""
    sampled: int
    """See `Budget.sampled`."""
    shared: bool = False
    """Whether several merges go over the same tiles, one after another: each is read for all."""


def sweeping_of(node: TensorNode, budget: Budget) -> Sweeping:
    """How a thread goes over the inputs of a tensor that it merges by itself."""
    return Sweeping(
        tile_elements=tile_of(node, budget.tile_elements),
        held=budget.holds(node),
        sampled=budget.sampled(node),
    )


def working_bytes(node: TensorNode, tile_elements: int, *, depth: int = 1) -> int:
    """Bytes a thread needs for one tensor besides what it holds of it.

    Args:
        node: The tensor.
        tile_elements: Of its tiles, but for those that have to be longer.
        depth: Tiles of inputs and output in memory at once.
    """
    elements = tile_of(node, tile_elements)
    tiles = depth * tile_bytes(node, tile_elements)
    if isinstance(node.step, CopyStep):
        tiles = 2 * node.slot.dtype.bits * elements // 8
    scratch = 4 * BLOCK * (len(node.inputs) + 4)
    # What a stage merges comes in tiles of its own, however few elements are asked for.
    inner = max(elements, tile_elements)
    derived = sum(one.scratch_bytes(inner if one.results else elements) for one in node.inputs)
    return tiles + scratch + derived + figure_bytes(node, elements)


def figure_bytes(node: TensorNode, tile_elements: int) -> int:
    """Bytes of what is counted and summed for a tensor, in tiles of its own."""
    return _counter_bytes(node, tile_elements) + _gram_bytes(node)


def _gram_bytes(node: TensorNode) -> int:
    """What inner products are summed in, where they are taken over the whole tensor."""
    pairs = node.vectors * (node.vectors + 1) // 2
    return 8 * (LANES + 1) * pairs if node.stats or node.has_gram else 0


def _counter_bytes(node: TensorNode, tile_elements: int) -> int:
    sources = len(node.inputs) - 1
    if isinstance(node.step, FreeStep):
        rule = node.step.rule
        counters = SELECTED_VALUES * 8 * LOW_BINS + HIGH_BINS * (8 + 4 * STRIPES)
        figures = rule.figure_bytes(node.slot.shape, sources)
        return figures + SCRATCH_BYTES + (counters if rule.selects else 0)
    if isinstance(node.step, SpanStep) and node.groups.kind is not Group.TENSOR:
        return node.groups.nbytes(len(node.inputs) - node.step.relative)
    if not isinstance(node.step, DeltaStep):
        return 0
    if node.step.ranks:
        return rank_bytes(rows_of(node.slot.shape), sources, tile_elements)
    if node.step.selects:
        ends = 2 if isinstance(node.step.rule.keep, KeepBand) else 1
        return sources * (8 * (HIGH_BINS + ends * LOW_BINS) + 4 * HIGH_BINS * STRIPES)
    return 0


def part_bytes(shard_bytes: int) -> int:
    """Length of the parts that a shard is uploaded in, but the last."""
    return max(PART_BYTES, -(-shard_bytes // MAX_PARTS))


def upload_bytes(shard_bytes: int) -> int:
    """What an upload of a shard holds in memory at most: its parts in flight, and the next one."""
    return part_bytes(shard_bytes) * (PARTS_IN_FLIGHT + 1)


def samples(node: TensorNode) -> bool:
    """Whether entries are looked at before all are counted."""
    step = node.step
    if isinstance(step, FreeStep):
        return step.rule.selects
    return isinstance(step, DeltaStep) and step.selects and not step.surveyed


def project(
    nodes: Sequence[TensorNode],
    *,
    budget_bytes: int,
    device: Literal["cpu", "cuda"],
    device_budget_bytes: int | None,
    threads: int,
    tile_elements: int | None,
    hold: bool = True,
    remote: bool = False,
    uploaded_bytes: int = 0,
) -> Memory:
    """Choose tiles and what is held, and project the peak.

    Args:
        nodes: Every output tensor.
        budget_bytes: What one worker process may use.
        device: What merges.
        device_budget_bytes: What one CUDA device may use; None projects without a limit.
        threads: Units in progress at once in a worker.
        tile_elements: A fixed tile instead of the chosen one, a multiple of 256.
        hold: Whether a tensor that is swept more than once is kept in memory where it fits.
        remote: Whether a source is read over a network. What is held then is not fetched again,
            and some of the budget goes into fetching ahead.
        uploaded_bytes: What a thread's upload to a store holds at most; 0 where files are written.

    Raises:
        PlanError: The largest tensor does not fit as the smallest tile, or the fixed one is none.
    """
    if tile_elements is not None and (tile_elements <= 0 or tile_elements % LANES):
        raise PlanError(f"tile_elements is {tile_elements}; give a positive multiple of {LANES}")
    process_bytes = PROCESS_BYTES + (TORCH_BYTES if device == "cuda" else 0)
    fixed_bytes = process_bytes + PLAN_BYTES_PER_TENSOR * _described(nodes)
    available = max(0, budget_bytes - fixed_bytes) // threads - THREAD_BYTES - uploaded_bytes
    window = _window_bytes(available) if remote else 0
    keys = list(map(kind_of, nodes))
    kinds = dict(zip(keys, nodes, strict=True))
    on_device = 0
    depth = RING_DEPTH if device == "cuda" else 1
    tile = tile_elements or (DEVICE_TILE if device == "cuda" else LARGEST_TILE)
    while True:
        needed = {key: working_bytes(node, tile, depth=depth) for key, node in kinds.items()}
        worst = kinds[max(needed, key=needed.__getitem__)]
        if device == "cuda":
            each = (device_bytes(node, tile, depth=depth) for node in kinds.values())
            on_device = threads * max(each)
        fits = max(needed.values()) <= available - window
        fits_device = device_budget_bytes is None or on_device <= device_budget_bytes
        if fits and fits_device:
            break
        if not tile_elements and tile > SMALLEST_TILE:
            tile //= 2
        elif not fits and window > LEAST_WINDOW_BYTES:
            window = LEAST_WINDOW_BYTES
        else:
            break
    if not fits or not fits_device:
        raise _too_large(
            worst,
            tile=tile,
            depth=depth,
            budget_bytes=budget_bytes,
            device_budget_bytes=device_budget_bytes,
            threads=threads,
            fixed_bytes=fixed_bytes,
            beside={"to fetch ahead": window, "to upload": uploaded_bytes},
        )
    budget = Budget(
        thread_bytes=available - window,
        tile_elements=tile,
        hold=hold or remote,
        window_bytes=window,
        depth=depth,
    )
    swept = {key: node for key, node in kinds.items() if len(node.passes) > 1}
    kept = {key: budget.holds(node) for key, node in swept.items()}
    peak = max(map(budget.peak_bytes, kinds.values()))
    again = [node for node, key in zip(nodes, keys, strict=True) if not kept.get(key, True)]
    return Memory(
        budget_bytes=budget_bytes,
        threads=threads,
        budget=budget,
        projected_host_bytes=fixed_bytes
        + threads * (peak + window + uploaded_bytes + THREAD_BYTES),
        pinned_host_bytes=threads * max(map(budget.buffer_bytes, kinds.values()))
        if device == "cuda"
        else 0,
        projected_device_bytes=on_device,
        held_tensors=sum(kept.get(key, False) for key in keys),
        reread_tensors=len(again),
        reread_bytes=sum(
            (len(node.passes) - 1 + (remote and samples(node))) * node.input_bytes for node in again
        ),
    )


def _window_bytes(available: int) -> int:
    return max(LEAST_WINDOW_BYTES, min(WINDOW_BYTES, available // WINDOW_SHARE))


Kind = tuple[object, ...]
"""Of nodes that are alike in memory."""


def kind_of(node: TensorNode) -> Kind:
    """Equal for nodes that are alike in memory: a large mixture has 90,000 of a few kinds."""
    if all(isinstance(one, Read) for one in node.inputs):
        dtypes = tuple(one.dtype for one in node.inputs)
        return id(node.step), node.slot.shape, node.slot.dtype, dtypes
    return (id(node),)


def _described(nodes: Sequence[TensorNode]) -> int:
    """What a plan of these nodes lists: merges, and what each reads."""
    return sum(
        1 + sum(1 if one.inner else len(one.reads) for one in node.inputs)
        for node in with_inner(nodes)
    )


def with_inner(nodes: Iterable[TensorNode]) -> Iterator[TensorNode]:
    """Every node, and every node inside it whose result it merges, each once."""
    seen: set[int] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            left.extend(inner for one in node.inputs for inner in one.results)


def _too_large(
    worst: TensorNode,
    *,
    tile: int,
    depth: int,
    budget_bytes: int,
    device_budget_bytes: int | None,
    threads: int,
    fixed_bytes: int,
    beside: Mapping[str, int],
) -> PlanError:
    own_bytes = working_bytes(worst, tile, depth=depth)
    thread_bytes = own_bytes + sum(beside.values()) + THREAD_BYTES
    needed_bytes = fixed_bytes + threads * thread_bytes
    more = [f"{format_bytes(nbytes)} more {why}, " for why, nbytes in beside.items() if nbytes]
    limit = f"the budget is {format_bytes(budget_bytes)}. Raise --memory or lower --workers."
    if needed_bytes <= budget_bytes and device_budget_bytes is not None:
        needed_bytes = threads * device_bytes(worst, tile, depth=depth)
        limit = (
            f"the device's budget is {format_bytes(device_budget_bytes)}. Raise --device-memory."
        )
    return PlanError(
        f"{worst.slot.name} needs {format_bytes(own_bytes)} a thread "
        f"({len(worst.inputs)} inputs, {_ring_words(depth)}tiles of {_tile_words(worst, tile)}), "
        f"{''.join(more)}"
        f"{format_bytes(needed_bytes)} in all with {threads} threads, and {limit}",
        tensor=worst.slot.name,
    )


def _ring_words(depth: int) -> str:
    return f"{depth} " if depth > 1 else ""


def _tile_words(node: TensorNode, tile: int) -> str:
    elements = max(tile, tile_of(node, tile))
    if elements == tile:
        return f"{tile} elements"
    rows = rows_of(node.slot.shape)
    return f"{elements} elements, since rows of {rows.length} are ranked whole"
