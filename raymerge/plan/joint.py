"""One tensor of several trials: which inputs it takes in all, and how a thread goes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymerge.plan.graph import CopyStep, Input, TensorNode
from raymerge.plan.memory import Budget, Sweeping, figure_bytes, samples, tile_of, working_bytes


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
        needed = self.held_bytes + self.working_bytes(budget.tile_elements)
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

    def working_bytes(self, tile_elements: int) -> int:
        """Bytes a thread needs for the tensor besides what it holds of it."""
        figures = sum(figure_bytes(node, tile_of(node, tile_elements)) for node in self.nodes)
        return working_bytes(self.node, tile_elements) + figures


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
