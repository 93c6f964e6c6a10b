"""What the commands call and Python programs may: load, plan, merge, verify, convert, inspect."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

# Everything else is imported where it is used: `raymerge --help` needs none of it.
if TYPE_CHECKING:
    from raymerge.checkpoint.catalog import Catalog
    from raymerge.checkpoint.verify import Verification
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.recipe import Recipe
    from raymerge.runtime.convert import Conversion
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.engine import Engine
    from raymerge.runtime.inspection import Inspection
    from raymerge.runtime.settings import OnProgress
    from raymerge.storage import SourceFolder
    from raymerge.storage.store import Access

AnyPath = str | os.PathLike[str]


def load(path: AnyPath) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: With file, line and key of the first thing wrong.
    """
    from raymerge import recipe

    return recipe.load(path)


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
    tile_elements: int | None
    """A fixed tile, a multiple of 256, in place of the chosen one."""


def plan(
    recipe: Recipe | AnyPath,
    *,
    out: AnyPath | None = None,
    seed: int | None = None,
    **options: Unpack[RunOptions],
) -> Plan:
    """Plan a merge from the headers of its sources. Reads no weight, starts nothing.

    Args:
        recipe: A recipe, or the path of one.
        out: Where the merge will be written; a file system on which several processes cannot fill
            one file makes a unit a whole shard.
        seed: In place of the recipe's.
        **options: See `RunOptions`.

    Raises:
        RecipeError: The recipe is wrong.
        PlanError: The sources do not match it, each other, or the budget.
        SourceError: A source cannot be read or is malformed.
    """
    return _plan(recipe, out=out, seed=seed, machine=_machine(options), options=options)


def merge(
    recipe: Recipe | AnyPath,
    out: AnyPath,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_plan: Callable[[Plan, Machine], None] = lambda _plan, _machine: None,
    on_progress: OnProgress = lambda _progress: None,
    **options: Unpack[RunOptions],
) -> MergeResult:
    """Plan a merge and run it. Run it again to finish one that was killed.

    Args:
        recipe: A recipe, or the path of one.
        out: Path or URL of the destination.
        seed: In place of the recipe's.
        overwrite: Replace whatever `out` holds, and stop a merge that is being written there.
        on_plan: Told of the plan before anything runs.
        on_progress: Told of bytes read and written, from any thread.
        **options: See `RunOptions`.

    Raises:
        RaymergeError: See `raymerge.errors`: each class says what a caller can do about it.
    """
    from raymerge.runtime.driver import execute

    machine = _machine(options)
    planned = _plan(recipe, out=out, seed=seed, machine=machine, options=options)
    on_plan(planned, machine)
    access = _access(options)

    def start_engine(units_at: str, report: OnProgress) -> Engine:
        return _start_engine(planned, machine, units_at, access, report)

    return execute(
        planned,
        os.fspath(out),
        start_engine,
        overwrite=overwrite,
        on_progress=on_progress,
        access=access,
    )


def verify(checkpoint: AnyPath, **options: Unpack[StorageOptions]) -> Verification:
    """Check a checkpoint against itself: index, headers, lengths, hashes, config, ties, NaN.

    Works on anyone's checkpoint. Reads every byte once.

    Args:
        checkpoint: Path or URL.
        **options: See `StorageOptions`.

    Raises:
        SourceError: There is no checkpoint to check.
    """
    from raymerge.checkpoint.verify import verify as verify_folder
    from raymerge.storage import open_folder

    place = os.fspath(checkpoint)
    return verify_folder(open_folder(place, label=place, access=_access(options)))


def convert(
    source: AnyPath,
    out: AnyPath,
    *,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    shard_bytes: int | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write a checkpoint as sharded safetensors with an index. Runs no code that a file holds.

    The source is a folder, or one file, of torch's pickles (`.bin`, `.pt`, `.pth`) or of
    safetensors; where a folder has both, the safetensors count. Tensors keep names, order and
    values. A head that shares its embedding's memory is left out, unless the config says untied.

    Args:
        source: Folder or file.
        out: Destination folder. Whole or absent: its index is written last, and a conversion that
            fails leaves nothing behind.
        dtype: Round floating-point tensors to the nearest value of this type, ties to even. None
            keeps what each tensor is.
        shard_bytes: Limit of an output shard; None chooses it from the output's size.
        overwrite: Replace whatever `out` holds.

    Raises:
        SourceError: It cannot be read, is malformed, or wants code to be run.
        PlanError: A quantised source and a dtype.
        ConflictError: `out` holds something, or is being written.
        NonFiniteError: A finite value is beyond the range of `dtype`.
    """
    from raymerge.machine import num_cpus
    from raymerge.runtime.convert import convert as convert_folder
    from raymerge.storage import open_local

    return convert_folder(
        open_local(os.fspath(source), label=os.fspath(source)),
        Path(out),
        label=os.fspath(source),
        dtype=dtype,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        threads=num_cpus(),
    )


def inspect(
    *sources: AnyPath,
    base: AnyPath | None = None,
    workers: int | None = None,
    **options: Unpack[StorageOptions],
) -> Inspection:
    """Tell whether a merge of some sources makes sense, without merging them.

    With a base it is their deltas that are compared, per layer and in total: norms, cosines,
    opposite signs, entries that did not change. Without one it is their weights. Every file is read
    once; memory is a few MB per source and thread.

    Args:
        *sources: Paths or URLs of folders, or of single `.safetensors` files.
        base: What they were trained from.
        workers: Threads; None takes what there is.
        **options: See `StorageOptions`.

    Raises:
        PlanError: Nothing to compare, or one source given twice.
        SourceError: A source cannot be read or is malformed.
    """
    from raymerge.errors import PlanError
    from raymerge.machine import num_cpus
    from raymerge.recipe.document import Place
    from raymerge.recipe.labels import Named, assign_labels
    from raymerge.runtime.inspect import inspect as compare
    from raymerge.storage import open_folder

    paths = [os.fspath(path) for path in ((base, *sources) if base is not None else sources)]
    known: dict[str, str] = {}
    for path in paths:
        first = known.setdefault(os.path.realpath(path), path)
        if first is not path:
            raise PlanError(f"{path} is given twice; give each source once, and the base apart")
    if not paths:
        raise PlanError("there is no source; give two, or one and a base")
    here = Place("command line", 0)
    labels = assign_labels([Named(location=path, label=None, place=here) for path in paths])
    access = _access(options)
    folders = [
        open_folder(path, label=label, access=access)
        for path, label in zip(paths, labels, strict=True)
    ]
    return compare(folders, labels, relative=base is not None, threads=workers or num_cpus())


def _access(options: StorageOptions) -> Access:
    from raymerge.storage.store import Access

    return Access(
        options=dict(options.get("storage_options", {})), cache=options.get("cache", True)
    )


def _machine(options: RunOptions) -> Machine:
    from raymerge.machine import inspect_machine

    return inspect_machine(
        engine=options.get("engine", "auto"),
        address=options.get("address"),
        device=options.get("device", "auto"),
        workers=options.get("workers"),
        memory_bytes=options.get("memory_bytes"),
    )


def _plan(
    recipe: Recipe | AnyPath,
    *,
    out: AnyPath | None,
    seed: int | None,
    machine: Machine,
    options: RunOptions,
) -> Plan:
    from raymerge.checkpoint.adapter import holds_adapter, read_adapter
    from raymerge.checkpoint.catalog import read_catalog
    from raymerge.checkpoint.config_diff import config_differences
    from raymerge.plan.build import PlanOptions, build
    from raymerge.recipe import Recipe
    from raymerge.storage import destination, open_folder
    from raymerge.tokenizer.files import read_tokenizer_files

    recipe = recipe if isinstance(recipe, Recipe) else load(recipe)
    if seed is not None:
        recipe = recipe.with_seed(seed)
    access = _access(options)
    folders = {
        source.label: open_folder(
            source.location, label=source.label, revision=source.revision, access=access
        )
        for source in (*recipe.checkpoints, *recipe.adapters)
    }
    adapters = {adapter.label for adapter in recipe.adapters}

    def read(label: str) -> Catalog:
        is_adapter = label in adapters or holds_adapter(folders[label].sizes())
        return (read_adapter if is_adapter else read_catalog)(folders[label], label=label)

    with ThreadPoolExecutor(len(folders)) as pool:
        catalogs = list(pool.map(read, folders))
    limits = PlanOptions(
        memory_bytes=machine.memory_bytes,
        threads=machine.threads,
        device=machine.device,
        shard_bytes=options.get("shard_bytes"),
        device_memory_bytes=options.get("device_memory_bytes"),
        whole_shards=out is not None and not _fills_together(os.fspath(out)),
        uploads=out is not None and destination(os.fspath(out)).is_objects,
        tile_elements=options.get("tile_elements"),
        # Of local files: the kernel has them cached after the first sweep, and a copy
        # from there into a core's cache moves fewer bytes than memory of our own (TIES: 10 % less).
        hold=False,
        remote=any(map(_is_fetched, folders.values())),
    )
    models = [catalog for catalog in catalogs if catalog.lora is None]
    return build(
        recipe,
        catalogs,
        limits,
        remarks=config_differences(models, folders),
        tokenizer_files={
            catalog.label: read_tokenizer_files(
                folders[catalog.label], catalog.side_files, label=catalog.label
            )
            for catalog in models
        },
    )


def _is_fetched(folder: SourceFolder) -> bool:
    """Whether the files of a source are read by range over a network."""
    from raymerge.storage.posix import PosixFolder

    return not isinstance(folder, PosixFolder) and folder.copied is None


def _fills_together(out: str) -> bool:
    """Whether several units may fill one file of the destination."""
    from raymerge.storage.mounts import shares_files
    from raymerge.storage.urls import Scheme, destination

    where = destination(out)
    return where.scheme is Scheme.FILE and shares_files(where.path)


def _start_engine(
    planned: Plan, machine: Machine, units_at: str, access: Access, report: OnProgress
) -> Engine:
    from raymerge.runtime.settings import run_settings

    settings = run_settings(planned, units_at, machine.device, access)
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
