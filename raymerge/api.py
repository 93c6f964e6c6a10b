"""What the commands call and Python programs may: load, plan, merge, verify and the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

from raymerge.options import (
    RunOptions,
    SimulateOptions,
    StorageOptions,
    access_of,
    checked_access,
    hiring_of,
    machine_of,
)

# Everything else is imported where it is used: `raymerge --help` needs none of it.
if TYPE_CHECKING:
    from raymerge.checkpoint.verify import Verification
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.recipe import Recipe
    from raymerge.runtime.convert import Conversion
    from raymerge.runtime.destination import Destination
    from raymerge.runtime.doctor.report import Diagnosis
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.engine import Engine
    from raymerge.runtime.events import OnEvent
    from raymerge.runtime.inspection import Inspection
    from raymerge.runtime.settings import OnProgress, RunSettings
    from raymerge.runtime.simulation.result import Simulation
    from raymerge.storage.store import Access

AnyPath = str | os.PathLike[str]


def load(path: AnyPath, **options: Unpack[StorageOptions]) -> Recipe:
    """Read and check a recipe.

    Args:
        path: Path or URL of the file.
        **options: See `StorageOptions`.

    Raises:
        RecipeError: With file, line and key of the first thing wrong.
        SourceError: A bucket with the recipe cannot be read.
    """
    return _load(path, access_of(options))


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
    return _plan(recipe, out=out, seed=seed, machine=machine_of(options), options=options)


def simulate(recipe: Recipe | AnyPath, **options: Unpack[SimulateOptions]) -> Simulation:
    """Foretell what a merge takes on a cluster, from the headers of its sources. Reads no weight.

    The units are those of the merge, and what hands them out is the Ray engine's own scheduler.

    Args:
        recipe: A recipe, or the path of one.
        **options: See `SimulateOptions`.

    Raises:
        RecipeError: The recipe is wrong.
        PlanError: The sources do not match it, each other, or the budget.
        SourceError: A source cannot be read or is malformed.
    """
    from raymerge.recipe import Recipe
    from raymerge.simulating import simulate_merge

    if not isinstance(recipe, Recipe):
        recipe = _load(recipe, access_of(options))
    return simulate_merge(recipe, options)


def merge(
    recipe: Recipe | AnyPath,
    out: AnyPath,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_plan: Callable[[Plan, Machine], None] = lambda _plan, _machine: None,
    on_progress: OnProgress = lambda _progress: None,
    on_event: OnEvent = lambda _event: None,
    events: AnyPath | None = None,
    trace: AnyPath | None = None,
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
        on_event: Told of every `runtime.events.Event`, one at a time, from any thread.
        events: File that events are appended to, a line of JSON each.
        trace: File for a trace of the run, which Perfetto opens.
        **options: See `RunOptions`.

    Raises:
        RaymergeError: See `raymerge.errors`: each class says what a caller can do about it.
    """
    from raymerge.runtime.events import phase
    from raymerge.runtime.watching import planned_event, watched

    machine = machine_of(options)
    place = os.fspath(out)
    listeners = listeners_of(on_event, machine)
    paths = [None if path is None else os.fspath(path) for path in (events, trace)]
    with watched(place, listeners, events_path=paths[0], trace_path=paths[1]) as tell:
        with phase(tell, "plan"):
            planned = _plan(recipe, out=out, seed=seed, machine=machine, options=options)
        tell(planned_event(planned, machine.engine, machine.device))
        on_plan(planned, machine)
        return run_plan(
            planned,
            place,
            machine=machine,
            overwrite=overwrite,
            on_progress=on_progress,
            on_event=tell,
            options=options,
        )


def run_plan(
    planned: Plan,
    out: str,
    *,
    machine: Machine,
    overwrite: bool,
    on_progress: OnProgress,
    options: RunOptions,
    on_event: OnEvent = lambda _event: None,
    start_engine: Callable[[RunSettings, OnProgress], Engine] | None = None,
) -> MergeResult:
    """Run a plan; see `merge`.

    Args:
        planned: What to run.
        out: Path or URL of the destination.
        machine: What it runs on.
        overwrite: Replace whatever `out` holds.
        on_progress: Told of bytes read and written, from any thread.
        options: Of the call.
        on_event: Told of what happens, one event at a time, from any thread.
        start_engine: Starts what runs units; None goes by the machine and the options.
    """
    from raymerge.runtime.driver import execute
    from raymerge.runtime.preflight import leave_nonce
    from raymerge.runtime.settings import run_settings

    access = access_of(options)

    def start(destination: Destination, report: OnProgress) -> Engine:
        nonce = leave_nonce(destination) if machine.engine == "ray" else None
        settings = run_settings(planned, destination.units_at, machine.device, access, nonce=nonce)
        if start_engine is not None:
            return start_engine(settings, report)
        return engine_for(settings, machine, report, options, on_event=on_event)

    return execute(
        planned,
        out,
        start,
        overwrite=overwrite,
        on_progress=on_progress,
        access=access,
        on_event=on_event,
    )


def listeners_of(on_event: OnEvent, machine: Machine) -> list[OnEvent]:
    """Whoever is told of events besides files."""
    if machine.engine == "local":
        return [on_event]
    from raymerge.runtime.ray_counters import RayCounters

    return [on_event, RayCounters()]


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
    return verify_folder(open_folder(place, label=place, access=checked_access(options, [place])))


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
    from raymerge.storage import local_folder, open_local

    return convert_folder(
        open_local(os.fspath(source), label=os.fspath(source)),
        local_folder(os.fspath(out)),
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
    access = checked_access(options, paths)
    folders = [
        open_folder(path, label=label, access=access)
        for path, label in zip(paths, labels, strict=True)
    ]
    return compare(folders, labels, relative=base is not None, threads=workers or num_cpus())


def doctor(
    *sources: AnyPath, write: Iterable[AnyPath] = (), **options: Unpack[StorageOptions]
) -> Diagnosis:
    """Try what a merge would do with some places, by a megabyte each, and say what is wrong.

    A source is listed and read from. At a destination a megabyte is written, read back and removed;
    of an object store it is also seen whether it holds to conditions and aborts uploads. Each place
    takes 30 s at most.

    Args:
        *sources: Paths or URLs to read from.
        write: Paths or URLs to write to.
        **options: See `StorageOptions`.

    Raises:
        PlanError: There is no place to try, or a storage option is none.
        StorageError: A place is no location.
    """
    from raymerge.errors import PlanError
    from raymerge.runtime.doctor.rounds import examine

    places, outs = [os.fspath(each) for each in sources], [os.fspath(each) for each in write]
    if not (places or outs):
        raise PlanError("there is no place to try; give a source, or --write and a destination")
    return examine(places, outs, checked_access(options, places, *outs))


def _load(path: AnyPath, access: Access) -> Recipe:
    from raymerge import recipe

    place = os.fspath(path)
    if "://" not in place:
        return recipe.load(place)
    from raymerge.storage import read_file

    return recipe.loads(read_file(place, access=access).decode("utf-8-sig", "replace"), path=place)


def _plan(
    recipe: Recipe | AnyPath,
    *,
    out: AnyPath | None,
    seed: int | None,
    machine: Machine,
    options: RunOptions,
) -> Plan:
    from raymerge.planning import plan_merge
    from raymerge.recipe import Recipe

    if not isinstance(recipe, Recipe):
        recipe = _load(recipe, access_of(options))
    if seed is not None:
        recipe = recipe.with_seed(seed)
    place = None if out is None else os.fspath(out)
    return plan_merge(recipe, out=place, machine=machine, options=options)


def engine_for(
    settings: RunSettings,
    machine: Machine,
    report: OnProgress,
    options: RunOptions,
    *,
    on_event: OnEvent = lambda _event: None,
    busy: Callable[[], bool] = lambda: False,
) -> Engine:
    """Start what runs units.

    Args:
        settings: What workers have to know.
        machine: What the run is going to use.
        report: Told of bytes read and written, from any thread.
        options: Of the call.
        on_event: Told of workers and their units.
        busy: Whether something else of this process may hold a cluster's room for workers.
    """
    if machine.engine == "local":
        from raymerge.runtime.local import LocalEngine
        from raymerge.runtime.readers import check_copies

        check_copies(settings.stored, settings.access)
        return LocalEngine(settings, threads=machine.threads, on_progress=report, on_event=on_event)
    from raymerge.runtime.cluster import ClusterEngine

    return ClusterEngine(
        settings,
        workers=machine.processes,
        threads=machine.threads,
        address=machine.address,
        memory_bytes=machine.memory_bytes,
        on_progress=report,
        hiring=replace(hiring_of(options), busy=busy),
        on_event=on_event,
    )
