"""Which node of a cluster runs which worker, and what the worker asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymerge.errors import ClusterError
from raymerge.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster and what Ray may hand out there."""

    id: str
    host: str
    num_cpus: int
    num_gpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What one worker asks for, and the node it was meant for."""

    node: str
    num_cpus: int
    num_gpus: int
    memory_bytes: int | None


def place(
    nodes: Sequence[Node], device: str, *, workers: int | None, memory_bytes: int | None
) -> tuple[Place, ...]:
    """Choose what each worker asks for and where it goes.

    A worker on CPUs takes its share of its node's, a worker on CUDA one GPU and one CPU. Without a
    number of workers there is one per GPU, or one per node with CPUs; else they are spread in
    proportion to what the nodes have.

    Raises:
        ClusterError: More is asked for than there is; Ray would wait for it for ever.
    """
    cuda = device == "cuda"
    has = [min(n.num_gpus, n.num_cpus) if cuda else n.num_cpus for n in nodes]
    room = [
        min(count, node.memory_bytes // memory_bytes) if memory_bytes else count
        for count, node in zip(has, nodes, strict=True)
    ]
    given = [0] * len(nodes)
    if workers is None:
        given = has if cuda else [min(1, count) for count in has]
    elif workers <= sum(room):
        for _ in range(workers):
            open_ = [i for i in range(len(nodes)) if given[i] < room[i]]
            given[max(open_, key=lambda i: (has[i] / (given[i] + 1), -given[i]))] += 1
    if not any(given) or any(g > r for g, r in zip(given, room, strict=True)):
        one = Place(node="", num_cpus=1, num_gpus=int(cuda), memory_bytes=memory_bytes)
        raise ClusterError(
            f"{workers or sum(given) or 1} workers of {asked(one)} each do not fit on the cluster:"
            f" {'; '.join(map(_offer, nodes))}. Lower --workers or --memory, or add nodes."
        )
    return tuple(
        Place(
            node=node.id,
            num_cpus=1 if cuda else node.num_cpus // count,
            num_gpus=int(cuda),
            memory_bytes=memory_bytes,
        )
        for node, count in zip(nodes, given, strict=True)
        for _ in range(count)
    )


def asked(spot: Place) -> str:
    """What a worker asks for, for messages."""
    gpus = f"{spot.num_gpus} GPU, " if spot.num_gpus else ""
    memory = f", {format_bytes(spot.memory_bytes)}" if spot.memory_bytes else ""
    return f"{gpus}{spot.num_cpus} CPU{memory}"


def _offer(node: Node) -> str:
    memory = format_bytes(node.memory_bytes)
    return f"{node.host} has {node.num_gpus} GPU, {node.num_cpus} CPU, {memory}"
