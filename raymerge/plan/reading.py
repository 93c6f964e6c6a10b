"""How often inputs are swept, and what that reads: of stored ones, and of stages' results.

A stage's result is merged again in every sweep over it, unless what it goes into is held. Its
reductions are done once, in the first sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raymerge.plan.graph import TensorNode
from raymerge.plan.memory import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSweeps:
    """How the results of stages are come by, over all tensors of the output."""

    once: int
    """Merged in the one sweep there is over them."""
    held: int
    """Merged once and kept for the sweeps that follow."""
    again: int
    """Merged again in every sweep."""
    most: int
    """The most sweeps over any of those."""


def bytes_swept(node: TensorNode, budget: Budget, sweeps: int = 1) -> int:
    """Bytes that are read for a number of sweeps over the result of a node.

    Where the run has to find a place among tied entries again, more than that.
    """
    times, sampled = _times(node, budget, sweeps)
    total = 0
    for one in node.inputs:
        if one.inner is None:
            total += times * one.read_bytes + one.dtype.num_bytes((sampled,))
        else:
            inside = budget.inside(node, one.inner)
            total += bytes_swept(one.inner, inside, times + (sampled > 0))
    return total


def bytes_once(node: TensorNode, budget: Budget) -> int:
    """Bytes that one sweep over the inputs of a node reads, reductions of stages included."""
    return sum(
        one.read_bytes
        if one.inner is None
        else bytes_swept(one.inner, budget.inside(node, one.inner))
        for one in node.inputs
    )


def result_sweeps(nodes: Iterable[TensorNode], budget: Budget) -> ResultSweeps:
    """Count the results of stages by how they are come by."""
    found: Counter[str] = Counter()
    most = 0
    for node in nodes:
        for held, times in _results(node, budget, 1):
            found["held" if held else "once" if times == 1 else "again"] += 1
            most = max(most, times)
    return ResultSweeps(once=found["once"], held=found["held"], again=found["again"], most=most)


def _results(node: TensorNode, budget: Budget, sweeps: int) -> Iterator[tuple[bool, int]]:
    """Of every result inside `node`: whether it is held, and how often it is swept."""
    times, sampled = _times(node, budget, sweeps)
    times += sampled > 0
    for one in node.inputs:
        if one.inner is not None:
            yield budget.holds(node), times
            yield from _results(one.inner, budget.inside(node, one.inner), times)


def _times(node: TensorNode, budget: Budget, sweeps: int) -> tuple[int, int]:
    """Sweeps over the inputs of a node, and the entries that are read besides for a sample."""
    if budget.holds(node):
        return 1, 0
    times = len(node.passes) - 1 + sweeps
    sampled = budget.sampled(node)
    if sampled == node.inputs[0].num_elements:
        return times + (sampled > 0), 0
    return times, sampled
