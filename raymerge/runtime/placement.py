"""Which node of a cluster runs which worker, and what the worker asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

from raymerge.errors import ClusterError
from raymerge.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hiring:
    """Which workers are wanted, besides how many."""

    gpus_each: float = 1.0
    """Of one GPU, where the device is CUDA: 0.5 puts two workers on each."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a node has to be labelled with: `value`, `!value`, `in(a, b)` or `!in(a, b)`."""
    placement_group: str | None = None
    """Name of a placement group in whose bundles the workers have to stay."""
    cpu_workers: int = 0
    """Workers on CPUs beside those on GPUs, of as many CPUs as units run at once in any."""
    wait_s: float = 120.0
    """How long to wait while there is no worker at all."""
    busy: Callable[[], bool] = lambda: False
    """Whether something else of this process may hold room that it will let go of: as long as it
    may, nobody gives up waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, or a bundle reserved on one, and what Ray may hand out there."""

    id: str
    host: str
    num_cpus: float
    num_gpus: float
    memory_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    bundle: int | None = None
    """Number of the bundle of a placement group that this is."""

    def without(self, places: Iterable[Place]) -> Node:
        """What is left of it beside some workers."""
        mine = [spot for spot in places if (spot.node, spot.bundle) == (self.id, self.bundle)]
        return replace(
            self,
            num_cpus=self.num_cpus - sum(spot.num_cpus for spot in mine),
            num_gpus=self.num_gpus - sum(spot.num_gpus for spot in mine),
            memory_bytes=self.memory_bytes - sum(spot.memory_bytes or 0 for spot in mine),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What one worker asks for, and where."""

    node: str
    num_cpus: int
    num_gpus: float
    memory_bytes: int | None
    bundle: int | None = None
    device: str = "cpu"
    """What it merges on."""

    @property
    def bundle_of_resources(self) -> dict[str, float]:
        """What it asks for, in Ray's words."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory_bytes or 0}
        return {name: count for name, count in asked.items() if count}


def one_worker(device: str, *, memory_bytes: int | None, gpus_each: float = 1.0) -> Place:
    """The least that a worker asks for."""
    gpus = 0 if device == "cpu" else gpus_each
    return Place(node="", num_cpus=1, num_gpus=gpus, memory_bytes=memory_bytes, device=device)


def spread(
    nodes: Sequence[Node], one: Place, *, workers: int | None, alone: bool = True
) -> tuple[Place, ...]:
    """Choose where workers go, as many as are wanted or as there is room for.

    A worker on CPUs takes its share of its node's, a worker on CUDA its part of a GPU and one CPU.
    Without a number of workers there is one per GPU, or one per node with CPUs; else they are
    spread in proportion to what the nodes have.

    Args:
        nodes: What there is.
        one: The least that a worker asks for.
        workers: How many are wanted; None leaves it to the nodes.
        alone: Whether nobody else is to have CPUs; else a worker takes no more than it asks for.
    """
    room = [_room(node, one) for node in nodes]
    given = [0] * len(nodes)
    if workers is None:
        given = room if one.num_gpus else [min(1, count) for count in room]
    else:
        for _ in range(min(workers, sum(room))):
            open_ = [i for i in range(len(nodes)) if given[i] < room[i]]
            given[max(open_, key=lambda i: (_has(nodes[i], one) / (given[i] + 1), -given[i]))] += 1
    return tuple(
        replace(
            one,
            node=node.id,
            bundle=node.bundle,
            num_cpus=floor(node.num_cpus) // count if alone and not one.num_gpus else one.num_cpus,
        )
        for node, count in zip(nodes, given, strict=True)
        for _ in range(count)
    )


def check_room(nodes: Sequence[Node], one: Place, *, workers: int | None, free: str) -> None:
    """Raise ClusterError where more is asked for than there is; Ray would wait for ever.

    Args:
        nodes: What there is, whoever uses it.
        one: The least that a worker asks for.
        workers: How many are wanted.
        free: What nobody uses and what somebody does, for the message.
    """
    wanted = workers or 1
    if sum(_room(node, one) for node in nodes) < wanted:
        raise ClusterError(
            f"{wanted} workers of {asked(one)} each do not fit on the cluster: "
            f"{'; '.join(map(_offer, nodes)) or 'no node is such as was asked for'}. Free now: "
            f"{free}. Lower --workers or --memory, or add nodes."
        )


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node's labels are such as were asked for, in the notation of Ray's selectors."""
    return all(_matches(labels.get(name), value) for name, value in wanted.items())


def _matches(found: str | None, wanted: str) -> bool:
    negated, listed, text = re.fullmatch(r"(!?)(in(?=\())?(.*)", wanted, re.DOTALL).groups()  # type: ignore[union-attr]
    values = {one.strip() for one in text.strip("()").split(",")} if listed else {text}
    return (found in values) != bool(negated)


def asked(spot: Place) -> str:
    """What a worker asks for, for messages."""
    gpus = f"{spot.num_gpus:g} GPU, " if spot.num_gpus else ""
    memory = f", {format_bytes(spot.memory_bytes)}" if spot.memory_bytes else ""
    return f"{gpus}{spot.num_cpus} CPU{memory}"


def _has(node: Node, one: Place) -> float:
    cpus = node.num_cpus / one.num_cpus
    return min(node.num_gpus / one.num_gpus, cpus) if one.num_gpus else cpus


def _room(node: Node, one: Place) -> int:
    """How many workers of at least this much a node takes."""
    by_memory = node.memory_bytes / one.memory_bytes if one.memory_bytes else float("inf")
    # A bit more than nothing: ten times 0.1 of a GPU are one.
    return max(0, floor(min(_has(node, one), by_memory) + 1e-9))


def _offer(node: Node) -> str:
    memory = format_bytes(node.memory_bytes)
    return f"{node.host} has {node.num_gpus:g} GPU, {node.num_cpus:g} CPU, {memory}"
