"""From a recipe to what its merge takes on a cluster that is described in a call's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymerge.errors import PlanError
from raymerge.machine import GPU_THREADS, Machine
from raymerge.options import RunOptions, SimulateOptions

if TYPE_CHECKING:
    from raymerge.recipe import Recipe
    from raymerge.runtime.simulation.fleet import Fleet
    from raymerge.runtime.simulation.result import Simulation

MEMORY_BYTES = 64 * 2**30
"""Budget of a worker process: 60 % of what a node has that comes with 110 GiB for each GPU."""
CPUS = 8


def simulate_merge(recipe: Recipe, options: SimulateOptions) -> Simulation:
    """Plan as for a real cluster, and run it on a simulated one."""
    from raymerge.planning import plan_merge
    from raymerge.runtime.simulation.result import simulate

    fleet = _fleet_of(options)
    _check_beside(fleet)
    machine = Machine(
        engine="ray",
        why="simulated",
        address=None,
        device=fleet.device,
        processes=None,
        threads=fleet.threads,
        memory_bytes=options.get("memory_bytes") or MEMORY_BYTES,
    )
    limits: RunOptions = {
        "storage_options": options.get("storage_options", {}),
        "cache": options.get("cache", True),
        "shard_bytes": options.get("shard_bytes"),
        "device_memory_bytes": options.get("device_memory_bytes"),
    }
    afar = options.get("storage", "objects") == "objects"
    planned = plan_merge(recipe, out=None, machine=machine, options=limits, afar=afar)
    return simulate(planned, fleet)


def _fleet_of(options: SimulateOptions) -> Fleet:
    from raymerge.runtime.simulation.fleet import CORE_GBPS, Fleet

    gpus, cpus = options["gpus_per_node"], options.get("cpus_per_node", CPUS)
    told, cpu_told = options.get("merge_gbps", {}), options.get("cpu_merge_gbps", {})
    return Fleet(
        nodes=options["nodes"],
        gpus_per_node=gpus,
        cpus_per_node=cpus,
        threads=GPU_THREADS if gpus else cpus,
        read_gbps=options["read_gbps"],
        write_gbps=options["write_gbps"],
        connection_gbps=options.get("connection_gbps"),
        merge_gbps={**CORE_GBPS, **told},
        told=tuple(told),
        cpu_workers=options.get("cpu_workers", 0),
        cpu_merge_gbps={**CORE_GBPS, **cpu_told},
        cpu_told=tuple(cpu_told),
        price_per_hour=options.get("price_per_hour"),
    )


def _check_beside(fleet: Fleet) -> None:
    """Raise PlanError where workers on CPUs make no sense, or a cluster would not take them."""
    if not fleet.cpu_workers:
        if fleet.cpu_told:
            raise PlanError(
                "--cpu-merge-gbps is the rate of --cpu-workers, and there are none; the rate of "
                "CPUs that merge alone is --merge-gbps"
            )
        return
    if not fleet.gpus_per_node:
        raise PlanError(
            "--cpu-workers are workers beside those on GPUs, and --gpus-per-node is 0: leave them "
            "out; then a node has one worker of --cpus-per-node threads"
        )
    room = sum(place.device == "cpu" for place in fleet.places())
    if room < fleet.cpu_workers:
        raise PlanError(
            f"{fleet.cpu_workers} --cpu-workers of {fleet.threads} CPUs each do not fit beside a "
            f"worker of 1 CPU for each GPU: {fleet.nodes} nodes of {fleet.gpus_per_node} GPUs and "
            f"{fleet.cpus_per_node} CPUs take {room}; raise --cpus-per-node"
        )
