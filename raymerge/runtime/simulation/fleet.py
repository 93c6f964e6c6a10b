"""The cluster that is simulated: its nodes, their lines to storage, what merges there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from raymerge.plan.memory import PARTS_IN_FLIGHT
from raymerge.runtime.fetching import REQUESTS
from raymerge.runtime.placement import Node, Place, one_worker, spread

GB = 10**9
Family = Literal["copy", "span", "delta", "drawn", "free"]
"""`drawn` are delta methods that draw what they keep: `dare_*` and `della*`."""

CORE_GBPS: Mapping[Family, float] = {
    "copy": 0.48,
    "span": 0.99,
    "delta": 1.12,
    "drawn": 0.91,
    "free": 1.21,
}
"""Measured: GB/s of inputs that one of two threads took in for each sweep, from cached files into
cached files, hashing included, on two cores of a Zen 4: the best of several turns of `python -m
bench.simulate rates`, which lay up to two times apart on a machine that others shared. No GPU has
been measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A cluster of equal nodes. Rates are in GB/s, 10**9 bytes."""

    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    """Threads of the one worker of a node without GPUs; with GPUs, one for each and those of
    workers beside them."""
    threads: int
    """Units in progress at once in a worker."""
    read_gbps: float
    """What a node reads at from storage, all its workers together."""
    write_gbps: float
    connection_gbps: float | None = None
    """What one connection to storage carries; None leaves it to the node's line."""
    merge_gbps: Mapping[Family, float]
    """What a GPU, or a thread on a CPU, takes in of the inputs of a sweep."""
    told: tuple[Family, ...] = ()
    """Families of which somebody has said it; of the others it is `CORE_GBPS`."""
    cpu_workers: int = 0
    """Workers on CPUs beside those on GPUs, of as many CPUs as units are in progress in any."""
    cpu_merge_gbps: Mapping[Family, float] = field(default_factory=lambda: CORE_GBPS)
    """What a thread of theirs takes in."""
    cpu_told: tuple[Family, ...] = ()
    """Families of which somebody has said that."""
    price_per_hour: float | None = None
    """Of one node."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What merges, but for workers on CPUs beside those on GPUs."""
        return "cuda" if self.gpus_per_node else "cpu"

    def cores_of(self, device: str) -> int:
        """What merges at once of a worker: its GPU, or its threads."""
        return 1 if device == "cuda" else self.threads

    @property
    def unit_read_bytes_s(self) -> float:
        """The most that one unit reads in a second."""
        return self._of_connections(self.read_gbps, REQUESTS)

    @property
    def unit_write_bytes_s(self) -> float:
        """The most that one unit writes in a second."""
        return self._of_connections(self.write_gbps, PARTS_IN_FLIGHT)

    def _of_connections(self, line_gbps: float, number: int) -> float:
        if self.connection_gbps is None:
            return line_gbps * GB
        return min(line_gbps, self.connection_gbps * number) * GB

    def places(self) -> tuple[Place, ...]:
        """The workers, where a run would put them: as many as there is room for."""
        cpus = max(self.cpus_per_node, self.gpus_per_node)
        there = [
            Node(
                id=f"node-{number}",
                host=f"node-{number}",
                num_cpus=cpus,
                num_gpus=self.gpus_per_node,
                memory_bytes=0,
            )
            for number in range(self.nodes)
        ]
        main = spread(there, one_worker(self.device, memory_bytes=None), workers=None)
        left = [node.without(main) for node in there]
        beside = replace(one_worker("cpu", memory_bytes=None), num_cpus=self.threads)
        return (*main, *spread(left, beside, workers=self.cpu_workers, alone=False))
