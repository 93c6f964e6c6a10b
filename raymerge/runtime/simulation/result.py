"""What a simulation comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymerge.plan.build import Plan
from raymerge.runtime.simulation.demands import rounds
from raymerge.runtime.simulation.fleet import GB, Fleet
from raymerge.runtime.simulation.play import Play

Bound = Literal["reads", "merges", "writes"]
HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraffic:
    """What goes over one node's line."""

    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A simulated run; the fields are those of `raymerge simulate --json`."""

    fleet: Fleet
    digest: str
    workers: int
    units: int
    shards: int
    seconds: float
    """From the first unit to the last. Starting a cluster and its workers is not in it."""
    utilisation: float
    """Share of the time that a worker has a unit in progress, on average."""
    idle_tail: float
    """Share of the time that a worker has nothing more to do and waits for others, on average."""
    bound_by: Bound
    """What all nodes together have least to spare of: lines in, lines out, or devices, of which
    CPUs beside GPUs do not count."""
    bound_share: float
    """How much of that is in use, on average over the run."""
    redone_units: int
    """Units that a second worker began, since they took long on the first."""
    bytes_read: int
    bytes_written: int
    nodes: tuple[NodeTraffic, ...]
    host_bytes_per_worker: int
    """The most that the plan allows a worker process to hold."""
    host_bytes_per_node: int
    """Of the node with most workers."""
    device_bytes: int
    """Of one CUDA device."""
    cost: float | None
    """Of all nodes for that time, in the currency of their price."""

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge simulate --json`."""
        return asdict(self)


def simulate(plan: Plan, fleet: Fleet) -> Simulation:
    """Run a plan on a fleet that is only described."""
    play = Play(fleet)
    for one in rounds(plan, fleet):
        play.run(one)
    sites, seats = play.sites.values(), play.seats
    least_s = _least_s(play, fleet)
    bound_by = max(least_s, key=lambda what: least_s[what])
    worker_s = max(play.now, 1e-9) * len(seats)
    memory = plan.memory
    price = fleet.price_per_hour
    return Simulation(
        fleet=fleet,
        digest=plan.digest,
        workers=len(seats),
        units=len(plan.units),
        shards=len(plan.shards),
        seconds=round(play.now, 3),
        utilisation=round(sum(seat.busy_s for seat in seats) / worker_s, 4),
        idle_tail=round(play.idle_tail_s / worker_s, 4),
        bound_by=bound_by,
        bound_share=round(least_s[bound_by] * len(seats) / worker_s, 4),
        redone_units=play.redone_units,
        bytes_read=round(sum(site.read_bytes for site in sites)),
        bytes_written=round(sum(site.write_bytes for site in sites)),
        nodes=tuple(
            NodeTraffic(bytes_read=round(site.read_bytes), bytes_written=round(site.write_bytes))
            for site in sites
        ),
        host_bytes_per_worker=memory.projected_host_bytes,
        host_bytes_per_node=memory.projected_host_bytes * max(len(site.cores) for site in sites),
        device_bytes=memory.projected_device_bytes,
        cost=None if price is None else round(price * fleet.nodes * play.now / HOUR_S, 2),
    )


def _least_s(play: Play, fleet: Fleet) -> Mapping[Bound, float]:
    """How long the run's reads, kernels and writes would take if each were all there is."""
    sites = play.sites.values()
    cluster_bytes_s = GB * fleet.nodes
    main = [seat for seat in play.seats if not seat.is_beside]
    merge_s = sum(seat.site.merge_s[seat.number] for seat in main)
    return {
        "merges": merge_s / (len(main) * fleet.cores_of(fleet.device)),
        "reads": sum(site.read_bytes for site in sites) / (fleet.read_gbps * cluster_bytes_s),
        "writes": sum(site.write_bytes for site in sites) / (fleet.write_gbps * cluster_bytes_s),
    }
