"""Results of stages as inputs of other stages: merged tile by tile whenever they are read.

    Input ---.                            Input ---.
    Input ----> Step -> Merged ----------> Step -> Slot
    Input ---'          an Input itself   of the stage that is written

No file lies between the two: the inner merge ends in the bytes that its stage would have written,
in the dtype it would have written them in, and the outer one begins with those.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.plan.graph import Derived, TensorNode
from raymerge.plan.memory import working_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Derived):
    """A tensor of a stage's result. Its `source` counts on from the plan's sources."""

    stage: int
    """Position in `Plan.stages`."""
    node: TensorNode
    """The merge; its slot is where the stage would have written the tensor."""

    @property
    def inner(self) -> TensorNode:
        """See `Derived.inner`."""
        return self.node

    @property
    def read_bytes(self) -> int:
        """What one sweep over it reads; reductions come on top, once each."""
        return self.node.input_bytes

    @property
    def identity(self) -> tuple[object, ...]:
        """See `Derived.identity`; the digest has the stage's merges by themselves."""
        return "Merged", self.stage, self.name

    @property
    def how(self) -> str:
        """See `Derived.how`."""
        return f"merged from {len(self.node.inputs)} inputs"

    def scratch_bytes(self, tile_elements: int) -> int:
        """See `Derived.scratch_bytes`; whatever is held comes on top."""
        return working_bytes(self.node, tile_elements)


def as_input(node: TensorNode, *, stage: int, source: int) -> Merged:
    """The result of a stage's node as an input of other stages."""
    stored = dict.fromkeys(read for one in node.inputs for read in one.reads)
    return Merged(
        source=source,
        name=node.slot.name,
        dtype=node.slot.dtype,
        shape=node.slot.shape,
        reads=tuple(sorted(stored, key=lambda read: -read.read_bytes)),
        stage=stage,
        node=node,
    )
