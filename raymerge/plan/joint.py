"""One tensor of several trials: which inputs it takes in all, and how a thread goes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymerge.kernels.constants import BLOCK
from raymerge.plan.build import Plan
from raymerge.plan.graph import CopyStep, DeltaStep, Input, TensorNode
from raymerge.plan.memory import (
    SMALLEST_TILE,
    Budget,
    Sweeping,
    figure_bytes,
    kind_of,
    samples,
    upload_bytes,
    working_bytes,
)
from raymerge.plan.rebase import Union
from raymerge.plan.tiles import tile_of


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTensor:
    """What is merged for one tensor of all trials. No step only copies."""

    nodes: tuple[TensorNode, ...]
    """One per trial, or per distinct merge."""
    inputs: tuple[Input, ...]
    """Of all nodes, each once."""

    @property
    def node(self) -> TensorNode:
        """All inputs as those of one node, whose step is the one with most to sweep for."""
        lead = max(self.nodes, key=lambda node: (samples(node), len(node.passes)))
        twins = tuple({id(pair): pair for node in self.nodes for pair in node.twins}.values())
        return replace(lead, inputs=self.inputs, twins=twins)

    def positions(self, node: TensorNode) -> tuple[int, ...]:
        """Where the inputs of one node stand among all."""
        places = {id(one): position for position, one in enumerate(self.inputs)}
        return tuple(places[id(one)] for one in node.inputs)

    def sweeping(self, budget: Budget) -> Sweeping:
        """How a thread goes over the inputs of all."""
        needed = self.held_bytes + self.working_bytes(budget.tile_elements, depth=budget.depth)
        return Sweeping(
            tile_elements=max(tile_of(node, budget.tile_elements) for node in self.nodes),
            held=budget.holds(self.node) and needed <= budget.thread_bytes,
            sampled=max(budget.sampled(node) for node in self.nodes),
            shared=True,
        )

    @property
    def held_bytes(self) -> int:
        """Bytes of all inputs in memory."""
        return sum(one.dtype.num_bytes(one.shape) for one in self.inputs)

    def working_bytes(self, tile_elements: int, *, depth: int = 1) -> int:
        """Bytes a thread needs for the tensor besides what it holds of it."""
        figures = [(node, figure_bytes(node, tile_of(node, tile_elements))) for node in self.nodes]
        # Counts of magnitudes are read off before the next merge's are taken.
        counted = [own for node, own in figures if _is_counted(node)]
        kept = sum(own for node, own in figures if not _is_counted(node))
        return self._tile_bytes(tile_elements, depth) + max(counted, default=0) + kept

    def _tile_bytes(self, tile_elements: int, depth: int) -> int:
        """Of tiles of the inputs and of every output, and of a fused pass over them."""
        tile = max(tile_of(node, tile_elements) for node in self.nodes)
        further = len(self.nodes) - 1
        # At most a row of kept entries for each source of each.
        rows = sum(4 * BLOCK * len(node.inputs) for node in self.nodes)
        outputs = depth * further * self.node.slot.dtype.num_bytes((tile,))
        return working_bytes(self.node, tile_elements, depth=depth) + outputs + rows


def _is_counted(node: TensorNode) -> bool:
    return isinstance(node.step, DeltaStep) and not node.step.ranks


def joint(nodes: Sequence[TensorNode]) -> JointTensor | None:
    """One tensor of several trials; None where all of them copy it.

    Args:
        nodes: Of a tensor each, in which equal inputs are the same object.
    """
    merged = tuple(node for node in nodes if not isinstance(node.step, CopyStep))
    if not merged:
        return None
    inputs = {id(one): one for node in merged for one in node.inputs}
    return JointTensor(nodes=merged, inputs=tuple(inputs.values()))


def joint_budget(plans: Sequence[Plan], union: Union, *, uploads: bool) -> Budget | None:
    """What one thread may use that merges for several plans; None if it does not suffice.

    Args:
        plans: Of equal units, for the same machine.
        union: Theirs.
        uploads: Whether units are sent to a store: every plan has an upload open then.
    """
    first = plans[0]
    # One upload is in every plan's own projection.
    more = upload_bytes(max(shard.nbytes for shard in first.shards)) if uploads else 0
    own = min((plan.memory.budget for plan in plans), key=lambda budget: budget.thread_bytes)
    tile = min(plan.memory.budget.tile_elements for plan in plans)
    left = own.thread_bytes - more * (len(plans) - 1)
    tensors = _kinds(union)
    while any(tensor.working_bytes(tile, depth=own.depth) > left for tensor in tensors):
        tile //= 2
        if tile < SMALLEST_TILE:
            return None
    return replace(own, thread_bytes=left, tile_elements=tile) if left >= 0 else None


def _kinds(union: Union) -> list[JointTensor]:
    """The tensors of a union, one for all that are alike in memory."""
    found: dict[object, JointTensor] = {}
    for units in zip(*(rebased.units for rebased in union.plans), strict=True):
        for nodes in zip(*(unit.nodes for unit in units), strict=True):
            key = _kind(nodes)
            if key not in found and (tensor := joint(nodes)) is not None:
                found[key] = tensor
    return list(found.values())


def _kind(nodes: Sequence[TensorNode]) -> object:
    """Equal for tensors whose nodes are alike, and have the same inputs in common."""
    places: dict[int, int] = {}
    shared = tuple(places.setdefault(id(one), len(places)) for node in nodes for one in node.inputs)
    return shared, tuple(map(kind_of, nodes))
