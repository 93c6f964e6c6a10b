"""From a recipe to what its merge takes on a cluster that is described in a call's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    told = options.get("merge_gbps", {})
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
        price_per_hour=options.get("price_per_hour"),
    )
