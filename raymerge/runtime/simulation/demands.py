"""What each unit of a plan asks of a node: bytes in, kernels, bytes out, in which order. Pure.

A worker reads ahead, merges and writes at once, so that what comes in, goes through and goes out
of a unit flows together. A tensor that is swept more than once is the exception: nothing of it is
written before its last sweep, and of one that is held nothing is read after the first. Where such
a tensor is larger than what is fetched ahead, its sweeps are stretches of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from raymerge.methods.rules import KeepDrawn, KeepRanked
from raymerge.plan.build import SURVEY_SWEEPS, Plan
from raymerge.plan.graph import CopyStep, DeltaStep, FreeStep, SpanStep, Step, TensorNode, Unit
from raymerge.plan.memory import Budget
from raymerge.plan.ranges import WINDOW_BYTES
from raymerge.plan.reading import bytes_once, bytes_swept
from raymerge.plan.units import dispatch_order, has_free_step
from raymerge.runtime.engine import Call
from raymerge.runtime.simulation.fleet import GB, Family, Fleet

SURVEY_CALLS: tuple[Call, ...] = ("count_high", "count_low", "count_ties")


class Demand(NamedTuple):
    """A stretch of a unit in which reads, kernels and writes flow together."""

    read_bytes: float
    merge_s: float
    """Of one GPU, or one thread on a CPU."""
    write_bytes: float


NOTHING = Demand(0, 0, 0)


def total(demands: Iterable[Demand]) -> Demand:
    """All of them at once."""
    return Demand(*map(sum, zip(*demands, strict=True)))


@dataclass(frozen=True, slots=True)
class Work:
    """A unit as a simulation knows it."""

    number: int
    nbytes: int
    """What the schedule goes by."""
    demands: tuple[Demand, ...]
    beside: tuple[Demand, ...] = ()
    """The same of a worker on CPUs beside those on GPUs."""
    bound: bool = False
    """Whether such a worker may not have it."""


@dataclass(frozen=True, slots=True)
class Round:
    """One call of an engine's `run`."""

    call: Call
    works: tuple[Work, ...]
    """In the order to begin them."""


def rounds(plan: Plan, fleet: Fleet) -> Iterator[Round]:
    """What a driver has its engine do for a plan, one after another."""
    assert len(SURVEY_CALLS) == SURVEY_SWEEPS
    if plan.surveyed:
        swept = tuple(_works(plan.units, fleet, plan.memory.budget, _surveyed))
        for call in SURVEY_CALLS:
            yield Round(call, swept)
    ordered = dispatch_order(plan.units)
    yield Round("merge", tuple(_works(ordered, fleet, plan.memory.budget, _merged)))


_Find = Callable[[Unit, Budget, Mapping[Family, float]], Iterator[Demand]]


def _works(units: Iterable[Unit], fleet: Fleet, budget: Budget, find: _Find) -> Iterator[Work]:
    """The units that ask for anything."""
    for unit in units:
        demands = tuple(find(unit, budget, fleet.merge_gbps))
        if not demands:
            continue
        if not fleet.cpu_workers:
            yield Work(unit.number, unit.nbytes, demands)
            continue
        beside = tuple(find(unit, budget, fleet.cpu_merge_gbps))
        yield Work(unit.number, unit.nbytes, demands, beside, bound=has_free_step(unit))


def _surveyed(unit: Unit, budget: Budget, merge_gbps: Mapping[Family, float]) -> Iterator[Demand]:
    swept = [n for n in unit.nodes if isinstance(n.step, DeltaStep) and n.step.surveyed]
    read_bytes = sum(bytes_once(node, budget) for node in swept)
    demand = Demand(read_bytes, sum(_sweep_s(node, merge_gbps) for node in swept), 0)
    if any(demand):
        yield demand


def _merged(unit: Unit, budget: Budget, merge_gbps: Mapping[Family, float]) -> Iterator[Demand]:
    together = NOTHING
    for node in unit.nodes:
        sweeps = _sweeps(node, budget, merge_gbps)
        if len(sweeps) == 1 or node.held_bytes <= WINDOW_BYTES:
            together = total((together, *sweeps))
            continue
        if any(together):
            yield together
        yield from sweeps[:-1]
        together = sweeps[-1]
    if any(together):
        yield together


def _sweeps(
    node: TensorNode, budget: Budget, merge_gbps: Mapping[Family, float]
) -> tuple[Demand, ...]:
    """What each sweep over a tensor asks for."""
    number = len(node.passes)
    read_bytes = bytes_swept(node, budget) + sum(a.read_bytes + b.read_bytes for a, b in node.twins)
    reads = [read_bytes / number] * number
    if budget.holds(node):
        reads = [read_bytes, *[0.0] * (number - 1)]
    writes = [0] * (number - 1) + [node.slot.nbytes]
    sweep_s = _sweep_s(node, merge_gbps)
    return tuple(Demand(read, sweep_s, write) for read, write in zip(reads, writes, strict=True))


def _sweep_s(node: TensorNode, merge_gbps: Mapping[Family, float]) -> float:
    """Time of the kernels for one sweep over a tensor, merges of stages inside it included."""
    own_s = node.held_bytes / (merge_gbps[family(node.step)] * GB)
    inner = (
        len(result.passes) * _sweep_s(result, merge_gbps)
        for one in node.inputs
        for result in one.results
    )
    return own_s + sum(inner)


def family(step: Step) -> Family:
    """Which kernels a step takes."""
    if isinstance(step, CopyStep):
        return "copy"
    if isinstance(step, SpanStep):
        return "span"
    if isinstance(step, FreeStep):
        return "free"
    return "drawn" if isinstance(step.rule.keep, KeepDrawn | KeepRanked) else "delta"
