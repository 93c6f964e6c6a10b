"""Cut shards into units: runs of whole output tensors, balanced by bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.checkpoint.layout import Shard
from raymerge.plan.graph import DeltaStep, FreeStep, Step, TensorNode, Unit
from raymerge.plan.memory import with_inner

UNIT_BYTES = 64 * 2**20
"""Output of a unit of delta steps, or of free steps with reductions, where several share a shard:
half a second's work of one core. Small enough that the last ones end together, so large that a
receipt costs nothing beside it."""
LIGHT_UNIT_BYTES = 256 * 2**20
"""Output of any other unit, whose bytes take a quarter of the time. A shard of this size is one
unit then, and the hash in its receipt is the shard's: it need not be read back."""
MAX_UNIT_TENSORS = 128
"""Keeps a unit's description under 100 KB, however small its tensors are. What stages inside the
recipe merge for a tensor counts as further ones."""
MAX_UNIT_READS = 7 * MAX_UNIT_TENSORS
"""Likewise, of the stored tensors that they are made of: an adapted one is made of three."""


def cut(
    shards: Sequence[Shard], nodes: Mapping[str, TensorNode], *, whole_shards: bool
) -> tuple[Unit, ...]:
    """Cut every shard, in the order of its bytes.

    Args:
        shards: The layout.
        nodes: The node of each output tensor.
        whole_shards: A unit is a shard, for destinations where a file has one writer.
    """
    units: list[Unit] = []
    for shard in shards:
        members = [nodes[slot.name] for slot in shard.slots]
        for group in [members] if whole_shards else _groups(members):
            units.append(
                Unit(
                    number=len(units),
                    shard=shard.name,
                    shard_bytes=shard.nbytes,
                    # The header is part of the first unit.
                    start=group[0].slot.start if group[0] is not members[0] else 0,
                    stop=group[-1].slot.stop,
                    nodes=tuple(group),
                )
            )
    return tuple(units)


def dispatch_order(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The order to hand units out: much larger ones first, the others as their bytes lie.

    Nobody should wait at the end for a worker that began the largest tensor last; beyond that,
    reading sources in order is worth more than an exact sort.
    """
    return tuple(sorted(units, key=lambda unit: (-(unit.nbytes // (2 * UNIT_BYTES)), unit.number)))


def has_free_step(unit: Unit) -> bool:
    """Whether a free method merges some of it: such units stay on one kind of device."""
    return any(isinstance(node.step, FreeStep) for node in with_inner(unit.nodes))


def _groups(members: Sequence[TensorNode]) -> Iterator[list[TensorNode]]:
    heavy = any(_is_heavy(node.step) for node in with_inner(members))
    limit = UNIT_BYTES if heavy else LIGHT_UNIT_BYTES
    group: list[TensorNode] = []
    described = group_reads = 0
    for node in members:
        group_bytes = node.slot.stop - group[0].slot.start if group else 0
        merges = sum(1 for _ in with_inner([node]))
        node_reads = sum(len(one.reads) for one in node.inputs)
        full = described + merges > MAX_UNIT_TENSORS or group_reads + node_reads > MAX_UNIT_READS
        if group and (group_bytes > limit or full):
            yield group
            group, described, group_reads = [], 0, 0
        group.append(node)
        described += merges
        group_reads += node_reads
    if group:
        yield group


def _is_heavy(step: Step) -> bool:
    return isinstance(step, DeltaStep) or (isinstance(step, FreeStep) and len(step.passes) > 1)
