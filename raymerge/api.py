"""What the commands call and Python programs may: load, plan, merge, verify."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raymerge import recipe as recipes
from raymerge.checkpoint.catalog import Catalog, read_catalog
from raymerge.checkpoint.config_diff import config_differences
from raymerge.checkpoint.verify import Verification
from raymerge.checkpoint.verify import verify as verify_folder
from raymerge.machine import Machine, inspect_machine
from raymerge.plan.build import Plan, PlanOptions, build
from raymerge.recipe import Recipe
from raymerge.storage.mounts import shares_files
from raymerge.storage.posix import PosixFolder

if TYPE_CHECKING:
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.engine import Engine
    from raymerge.runtime.settings import OnProgress

Path_ = str | os.PathLike[str]
EngineName = Literal["auto", "local", "ray"]
Device = Literal["auto", "cpu", "cuda"]


def load(path: Path_) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: With file, line and key of the first thing wrong.
    """
    return recipes.load(path)


def plan(
    recipe: Recipe | Path_,
    *,
    out: Path_ | None = None,
    engine: EngineName = "auto",
    address: str | None = None,
    device: Device = "auto",
    workers: int | None = None,
    memory_bytes: int | None = None,
    device_memory_bytes: int | None = None,
    shard_bytes: int | None = None,
    seed: int | None = None,
    tile_elements: int | None = None,
) -> Plan:
    """Plan a merge from the headers of its sources. Reads no weight, starts nothing.

    Args:
        recipe: A recipe, or the path of one.
        out: Where the merge will be written; a file system on which several processes cannot fill
            one file makes a unit a whole shard.
        engine: `local`, `ray`, or `auto`: Ray where there is an address or more than one GPU.
        address: Address of a Ray cluster; RAY_ADDRESS if None.
        device: What merges: `cpu`, `cuda`, or `auto` for CUDA where there is a device.
        workers: Threads of the local engine, worker processes of Ray; None takes what there is.
        memory_bytes: Budget of one worker process; None takes 60 % of the memory there is, divided
            by the workers of the machine.
        device_memory_bytes: Budget of one CUDA device.
        shard_bytes: Limit of an output shard; None chooses it from the output's size.
        seed: In place of the recipe's.
        tile_elements: A fixed tile, a multiple of 256, in place of the chosen one. Changes no byte.

    Raises:
        RecipeError, PlanError: The recipe is wrong, or does not match its sources or the budget.
        SourceError: A source cannot be read or is malformed.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load(recipe)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    machine = inspect_machine(
        engine=engine, address=address, device=device, workers=workers, memory_bytes=memory_bytes
    )
    return _plan(
        recipe,
        PlanOptions(
            memory_bytes=machine.memory_bytes,
            threads=machine.threads,
            device=machine.device,
            shard_bytes=shard_bytes,
            device_memory_bytes=device_memory_bytes,
            whole_shards=out is not None and not shares_files(out),
            tile_elements=tile_elements,
        ),
    )


def merge(
    recipe: Recipe | Path_,
    out: Path_,
    *,
    engine: EngineName = "auto",
    address: str | None = None,
    device: Device = "auto",
    workers: int | None = None,
    memory_bytes: int | None = None,
    device_memory_bytes: int | None = None,
    shard_bytes: int | None = None,
    seed: int | None = None,
    tile_elements: int | None = None,
    overwrite: bool = False,
    on_plan: Callable[[Plan, Machine], None] = lambda _plan, _machine: None,
    on_progress: OnProgress = lambda _progress: None,
) -> MergeResult:
    """Plan a merge and run it. Run it again to finish one that was killed.

    Takes the arguments of `plan`, and:

    Args:
        recipe: A recipe, or the path of one.
        out: Destination folder.
        engine: See `plan`.
        address: See `plan`.
        device: See `plan`.
        workers: See `plan`.
        memory_bytes: See `plan`.
        device_memory_bytes: See `plan`.
        shard_bytes: See `plan`.
        seed: See `plan`.
        tile_elements: See `plan`.
        overwrite: Replace whatever `out` holds, and stop a merge that is being written there.
        on_plan: Told of the plan before anything runs.
        on_progress: Told of bytes read and written, from any thread.

    Raises:
        RaymergeError: See `raymerge.errors`: each class says what a caller can do about it.
    """
    from raymerge.runtime.driver import execute
    from raymerge.runtime.settings import RunSettings

    planned = plan(
        recipe,
        out=out,
        engine=engine,
        address=address,
        device=device,
        workers=workers,
        memory_bytes=memory_bytes,
        device_memory_bytes=device_memory_bytes,
        shard_bytes=shard_bytes,
        seed=seed,
        tile_elements=tile_elements,
    )
    machine = inspect_machine(
        engine=engine, address=address, device=device, workers=workers, memory_bytes=memory_bytes
    )
    on_plan(planned, machine)

    def start_engine(folder: str, report: OnProgress) -> Engine:
        settings = RunSettings(
            sources=planned.sources,
            folder=folder,
            seed=planned.recipe.seed,
            nan=planned.recipe.nan,
            budget=planned.memory.budget,
            device=machine.device,
        )
        if machine.engine == "local":
            from raymerge.runtime.local import LocalEngine

            return LocalEngine(settings, threads=machine.threads, on_progress=report)
        from raymerge.runtime.cluster import ClusterEngine

        return ClusterEngine(
            settings,
            workers=machine.processes,
            threads=machine.threads,
            address=machine.address,
            memory_bytes=machine.memory_bytes,
            on_progress=report,
        )

    return execute(planned, Path(out), start_engine, overwrite=overwrite, on_progress=on_progress)


def verify(checkpoint: Path_) -> Verification:
    """Check a checkpoint against itself: index, headers, lengths, hashes, config, ties, NaN.

    Works on anyone's checkpoint. Reads every byte once.

    Raises:
        SourceError: There is no checkpoint to check.
    """
    return verify_folder(PosixFolder(checkpoint))


def _plan(recipe: Recipe, options: PlanOptions) -> Plan:
    folders = {source.label: PosixFolder(source.location) for source in recipe.all_sources}

    def read(label: str) -> Catalog:
        return read_catalog(folders[label], label=label)

    with ThreadPoolExecutor(len(folders)) as pool:
        catalogs = list(pool.map(read, folders))
    return build(recipe, catalogs, options, remarks=config_differences(catalogs, folders))
