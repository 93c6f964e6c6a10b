"""How long the tiles of a tensor are, and what tiles take on a device."""

from __future__ import annotations

from raymerge.kernels.groups import Group
from raymerge.kernels.rows import rows_of, whole_rows
from raymerge.plan.graph import CopyStep, DeltaStep, FreeStep, SpanStep, TensorNode


def tile_of(node: TensorNode, tile_elements: int) -> int:
    """Elements of this tensor's tiles: fewer if it has no more, more where a row needs them."""
    if isinstance(node.step, DeltaStep) and node.step.ranks:
        tile_elements = whole_rows(rows_of(node.slot.shape), tile_elements)
    return min(node.inputs[0].num_elements, tile_elements)


def tile_bytes(node: TensorNode, tile_elements: int, *, outputs_alone: bool = False) -> int:
    """Bytes of a tile of every input and of the output."""
    widths = [node.slot.dtype.bits]
    if not outputs_alone:
        widths += [one.dtype.bits for one in node.inputs]
    return sum(widths) * tile_of(node, tile_elements) // 8


def device_bytes(node: TensorNode, tile_elements: int, *, depth: int = 1) -> int:
    """Upper bound of what a thread allocates on a device for a tensor.

    Args:
        node: The tensor.
        tile_elements: Of its tiles, but for those that have to be longer.
        depth: Of the ring: tiles on their way to the kernels, or back.
    """
    waiting = (
        0 if isinstance(node.step, CopyStep) else (depth - 1) * tile_bytes(node, tile_elements)
    )
    # While kernels have one tile, stages inside are merged for another.
    inside = _inside_bytes(node, tile_elements)
    return waiting + _kernel_bytes(node, tile_elements) + inside


def _inside_bytes(node: TensorNode, tile_elements: int) -> int:
    """Of the stages among a tensor's inputs, whose kernels run one after another."""
    stages = [stage for one in node.inputs for stage in one.results]
    alone = (_kernel_bytes(stage, tile_elements) for stage in stages)
    deeper = (_inside_bytes(stage, tile_elements) for stage in stages)
    return max(*alone, *deeper, 0, 0)


def _kernel_bytes(node: TensorNode, tile_elements: int) -> int:
    if isinstance(node.step, CopyStep):
        return 0
    elements = tile_of(node, tile_elements)
    inputs = len(node.inputs)
    # Raw and widened inputs, deltas, agreement masks; Gram products in float64; the tie rule's
    # and the generator's int64 temporaries.
    gram = "gram" in node.step.passes or node.stats
    pairs = inputs * (inputs + 1) // 2 if gram else 2 * inputs
    grouped = 0
    if isinstance(node.step, SpanStep) and node.groups.kind is not Group.TENSOR:
        # Lanes of short rows, a factor for every element, and the sums of all groups.
        grouped = elements * (2 * 8 * pairs + 4 * inputs) + node.groups.nbytes(inputs)
    # A sort takes its results, indices and a copy of both; then ranks, limits, factors and words.
    ranked = isinstance(node.step, DeltaStep) and node.step.ranks
    # A free method's exp and log: shares, terms and their float64 temporaries.
    own = 12 if isinstance(node.step, FreeStep) else 0
    temporaries = 8 * ((20 if ranked else 10) + own)
    return elements * (inputs * (8 + 4 + 4 + 1) + 8 * pairs + temporaries) + grouped
