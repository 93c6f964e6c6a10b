"""What a worker process will hold at most, kept under the budget by choosing tiles and re-reads.

A worker runs several units at once, one per thread, and a thread works on one tensor at a time:

    process = interpreter and libraries + the plan (in the driver) + threads * working set
    working set = a tile of every input and of the output, and the method's counters;
                  a tensor that is swept more than once is held whole instead, if that fits

What does not fit whole is read again for every pass. What does not fit as the smallest tile is a
PlanError with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymerge.errors import PlanError
from raymerge.kernels.constants import BLOCK, HIGH_BINS, LOW_BINS, STRIPES
from raymerge.plan.graph import CopyStep, DeltaStep, TensorNode
from raymerge.units import format_bytes

PROCESS_BYTES = 256 * 2**20
"""Interpreter, numpy, numba and the compiled kernels. Measured: 150 to 190 MiB."""
TORCH_BYTES = 512 * 2**20
"""What torch adds to a process that needs it, its CUDA context's host side included."""
PLAN_BYTES_PER_TENSOR = 1200
"""A node, its slot and one read. Measured on 90,000 tensors of four sources."""
THREAD_BYTES = 8 * 2**20
"""Stack, hash state and the small arrays around a thread's tiles."""

LARGEST_TILE = 2**20
"""A tile of four bfloat16 inputs is 8 MiB then: it stays in the last cache between read and use."""
SMALLEST_TILE = 2**14
DEVICE_TILE = 2**24
"""A CUDA kernel launch costs as much as 2**14 elements; this keeps launches out of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one thread may use, and the tiles that follow from it."""

    thread_bytes: int
    tile_elements: int

    def holds(self, node: TensorNode) -> bool:
        """Whether a tensor that is swept more than once stays in memory between its passes."""
        held = node.input_bytes + working_bytes(node, self.tile_elements)
        return len(node.step.passes) > 1 and held <= self.thread_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The projection that a plan prints, in bytes of one worker process."""

    budget_bytes: int
    threads: int
    budget: Budget
    projected_host_bytes: int
    projected_device_bytes: int
    """On a CUDA device; what it would be, where there is none."""
    held_tensors: int
    """Swept more than once from memory."""
    reread_tensors: int
    """Swept more than once from their files, since they do not fit."""
    reread_bytes: int
    """What those sweeps read again."""


def working_bytes(node: TensorNode, tile_elements: int) -> int:
    """Bytes a thread needs for one tensor besides what it holds of it."""
    shape_elements = node.inputs[0].entry.num_elements
    elements = min(shape_elements, tile_elements)
    widths = [read.entry.dtype.bits for read in node.inputs] + [node.slot.dtype.bits]
    if isinstance(node.step, CopyStep):
        widths = [node.slot.dtype.bits] * 2
    scratch = 4 * BLOCK * (len(node.inputs) + 4)
    return sum(widths) * elements // 8 + scratch + _counter_bytes(node)


def _counter_bytes(node: TensorNode) -> int:
    if isinstance(node.step, DeltaStep) and node.step.selects:
        return (len(node.inputs) - 1) * (8 * (HIGH_BINS + LOW_BINS) + 4 * HIGH_BINS * STRIPES)
    return 0


def device_bytes(node: TensorNode, tile_elements: int) -> int:
    """Upper bound of what the torch kernels allocate on a device for a tile of `node`."""
    elements = min(node.inputs[0].entry.num_elements, tile_elements)
    inputs = len(node.inputs)
    if isinstance(node.step, CopyStep):
        return 0
    # Raw and widened inputs, deltas, agreement masks; Gram products in float64; the tie rule's
    # and the generator's int64 temporaries.
    pairs = inputs * (inputs + 1) // 2 if "gram" in node.step.passes else 2 * inputs
    return elements * (inputs * (8 + 4 + 4 + 1) + 8 * pairs + 10 * 8)


def project(
    nodes: Sequence[TensorNode],
    *,
    budget_bytes: int,
    device_budget_bytes: int | None,
    threads: int,
    tile_elements: int | None,
) -> Memory:
    """Choose tiles and what is held, and project the peak.

    Args:
        nodes: Every output tensor.
        budget_bytes: What one worker process may use.
        device_budget_bytes: What one CUDA device may use; None projects without a limit.
        threads: Units in progress at once in a worker.
        tile_elements: A fixed tile instead of the chosen one, a multiple of 256.

    Raises:
        PlanError: The largest tensor does not fit as the smallest tile.
    """
    fixed_bytes = PROCESS_BYTES + PLAN_BYTES_PER_TENSOR * sum(1 + len(n.inputs) for n in nodes)
    thread_bytes = max(0, budget_bytes - fixed_bytes) // threads - THREAD_BYTES
    tile = tile_elements or LARGEST_TILE
    worst = max(nodes, key=lambda node: working_bytes(node, tile))
    while not tile_elements and tile > SMALLEST_TILE and working_bytes(worst, tile) > thread_bytes:
        tile //= 2
        worst = max(nodes, key=lambda node: working_bytes(node, tile))
    needed_bytes = fixed_bytes + threads * (working_bytes(worst, tile) + THREAD_BYTES)
    if needed_bytes > budget_bytes:
        raise PlanError(
            f"{worst.slot.name} needs {format_bytes(working_bytes(worst, tile))} a thread "
            f"({len(worst.inputs)} inputs, tiles of {tile} elements), {format_bytes(needed_bytes)} "
            f"in all with {threads} threads, and the budget is {format_bytes(budget_bytes)}. Raise "
            "--memory or lower --workers.",
            tensor=worst.slot.name,
        )
    budget = Budget(thread_bytes=thread_bytes, tile_elements=tile)
    swept = [node for node in nodes if len(node.step.passes) > 1]
    held = [node for node in swept if budget.holds(node)]
    held_bytes = max((n.input_bytes + working_bytes(n, tile) for n in held), default=0)
    peak = max(held_bytes, working_bytes(worst, tile))
    again = [node for node in swept if not budget.holds(node)]
    on_device = max(device_bytes(node, DEVICE_TILE) for node in nodes)
    if device_budget_bytes is not None and on_device > device_budget_bytes:
        on_device = device_budget_bytes
    return Memory(
        budget_bytes=budget_bytes,
        threads=threads,
        budget=budget,
        projected_host_bytes=fixed_bytes + threads * (peak + THREAD_BYTES),
        projected_device_bytes=on_device,
        held_tensors=len(held),
        reread_tensors=len(again),
        reread_bytes=sum((len(node.step.passes) - 1) * node.input_bytes for node in again),
    )
