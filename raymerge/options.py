"""What a call of the API may be told besides its sources and its destination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Required, TypedDict

if TYPE_CHECKING:
    from raymerge.machine import Machine
    from raymerge.runtime.placement import Hiring
    from raymerge.storage.store import Access


Rates = Mapping[Literal["copy", "span", "delta", "drawn", "free"], float]
"""GB/s, 10**9 bytes, by family of kernels."""


class StorageOptions(TypedDict, total=False):
    """How buckets and the Hub are reached. Every key may be left out."""

    storage_options: Mapping[str, str]
    """Of object stores: endpoint, region and the like. Secrets come from the environment."""
    cache: bool
    """Whether files of the Hub go through its cache on each node, or are read by range."""


class RunOptions(StorageOptions, total=False):
    """What a merge may use. Every key may be left out; none changes a byte of the tensors."""

    engine: Literal["auto", "local", "ray"]
    """`local`, `ray`, or `auto`: Ray where there is an address or more than one GPU."""
    address: str | None
    """Address of a Ray cluster; RAY_ADDRESS if None."""
    device: Literal["auto", "cpu", "cuda"]
    """What merges: `cpu`, `cuda`, or `auto` for CUDA where there is a device."""
    workers: int | None
    """Threads of the local engine, worker processes of Ray; None takes what there is."""
    memory_bytes: int | None
    """Budget of one worker process; None takes 60 % of the memory there is, divided by the workers
    of the machine."""
    device_memory_bytes: int | None
    """Budget of one CUDA device."""
    shard_bytes: int | None
    """Limit of an output shard; None chooses it from the output's size."""
    gpus_per_worker: float
    """Of one GPU, for a Ray worker on CUDA: 0.5 puts two on each."""
    cpu_workers: int
    """Ray workers on CPUs beside those on GPUs; of free methods, whose bytes were compared across
    devices on CPUs alone so far, they get no unit."""
    node_labels: Mapping[str, str]
    """What nodes of the Ray cluster have to be labelled with, in Ray's notation of selectors."""
    placement_group: str | None
    """Name of a placement group in whose bundles Ray's workers have to stay."""
    wait_s: float
    """How long to wait while the cluster has no worker for the merge."""
    tile_elements: int | None
    """A fixed tile, a multiple of 256, in place of the chosen one."""
    stats: bool
    """Whether norms and cosines of what is merged go into the ledger; most methods take a pass more
    for them."""


class SimulateOptions(StorageOptions, total=False):
    """A cluster, and what a merge may use on it. Rates are GB/s, 10**9 bytes, not Gbit/s."""

    nodes: Required[int]
    gpus_per_node: Required[int]
    """0 merges on CPUs, with one worker on each node."""
    cpus_per_node: int
    """Threads of that worker, 8 if left out. Beside GPUs, CPUs that workers may have: one for each
    GPU, two for each of `cpu_workers`."""
    cpu_workers: int
    """Workers on CPUs beside those on GPUs, on all nodes together; see `RunOptions`."""
    read_gbps: Required[float]
    """What a node reads from storage, all its workers together."""
    write_gbps: Required[float]
    connection_gbps: float | None
    """What one connection to storage carries; None leaves it to the node's line."""
    merge_gbps: Rates
    """What a GPU, or a thread on CPUs, takes in of the inputs of each sweep, by family of kernels;
    for a family left out, what was measured of one core."""
    cpu_merge_gbps: Rates
    """The same of a thread of `cpu_workers`; they have two each."""
    price_per_hour: float | None
    """Of one node."""
    storage: Literal["objects", "files"]
    """Where sources and output are thought to lie, wherever they are: in an object store, where a
    unit is a whole shard, or in a file system in which several processes fill one file."""
    memory_bytes: int | None
    """Budget of one worker process; 64 GiB if left out."""
    device_memory_bytes: int | None
    """Budget of one CUDA device."""
    shard_bytes: int | None
    """Limit of an output shard; None chooses it from the output's size."""


def access_of(options: StorageOptions) -> Access:
    """How storage is reached."""
    from raymerge.storage.store import Access

    return Access(
        options=dict(options.get("storage_options", {})), cache=options.get("cache", True)
    )


def checked_access(
    options: StorageOptions, sources: Iterable[str], *destinations: str | None
) -> Access:
    """How storage is reached, if the options are such as those places have.

    Args:
        options: Of the call.
        sources: Paths and URLs.
        *destinations: Likewise; None for one that is not known yet.

    Raises:
        PlanError: An option is a secret, or none of these places has it.
    """
    from raymerge.storage import destination, source
    from raymerge.storage.options import NAMES, check_options

    access = access_of(options)
    if access.options:
        schemes = {source(text).scheme for text in sources}
        for text in destinations:
            schemes |= NAMES.keys() if text is None else {destination(text).scheme}
        check_options(access.options, schemes)
    return access


def hiring_of(options: RunOptions) -> Hiring:
    """Which workers of a cluster are wanted."""
    from raymerge.runtime.placement import Hiring

    return Hiring(
        gpus_each=options.get("gpus_per_worker", 1.0),
        cpu_workers=options.get("cpu_workers", 0),
        labels=dict(options.get("node_labels", {})),
        placement_group=options.get("placement_group"),
        wait_s=options.get("wait_s", 120.0),
    )


def machine_of(options: RunOptions) -> Machine:
    """What a merge runs on, as far as the options and the machine say.

    Raises:
        PlanError: The options contradict that.
    """
    from raymerge.errors import PlanError
    from raymerge.machine import inspect_machine

    machine = inspect_machine(
        engine=options.get("engine", "auto"),
        address=options.get("address"),
        device=options.get("device", "auto"),
        workers=options.get("workers"),
        memory_bytes=options.get("memory_bytes"),
    )
    if options.get("cpu_workers") and (machine.engine, machine.device) != ("ray", "cuda"):
        raise PlanError(
            f"--cpu-workers are Ray workers beside those on GPUs, and here the engine is "
            f"{machine.engine} and the device {machine.device}: write --workers instead, or "
            "--engine ray --device cuda"
        )
    return machine
