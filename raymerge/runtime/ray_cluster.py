"""What the engine asks of Ray: to start workers, to call them, and what becomes of them.

Ray itself restarts and retries nothing here: its retry of a call waits for that very actor, for
good if the place is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, current_thread, main_thread
from time import sleep
from typing import Any

import ray
from ray import exceptions as failures
from ray._private import state as ray_state
from ray._private import worker as ray_driver
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from raymerge.errors import ClusterError, RaymergeError
from raymerge.runtime.losses import WorkerLostError
from raymerge.runtime.placement import Node, Place
from raymerge.runtime.remote import RemoteWorker
from raymerge.runtime.schedule import Loss
from raymerge.units import format_bytes

CONNECT_S = 5
"""Longest wait for a cluster's port. Ray would try for 122 s and then end the process."""
OBJECT_STORE_BYTES = 100_000_000
"""Near Ray's least: units and histograms pass through it, never tensors."""
_LOST = (
    failures.RayActorError,  # dead or unreachable
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # its node died between the end of the call and our look at it
    failures.ActorUnschedulableError,  # its node was gone before it could start there
)
_started_here = False
"""Whether this process is part of a cluster that `connect` started."""


def is_connected() -> bool:
    """Whether this process is part of a cluster."""
    return bool(ray.is_initialized())


def is_own() -> bool:
    """Whether this process has started the cluster that it is part of, and for itself alone."""
    return _started_here


def connect(address: str | None, *, workers: int | None) -> None:
    """Start a small, silent Ray here, or join the cluster at `address`.

    Raises:
        ClusterError: There is no cluster, or it cannot be used from here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else Ray hides the GPUs from workers that ask for none, and warns that it will stop doing so.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A stopped run drops calls unread; Ray would print the error of each.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Ray prints lost workers to stdout, which is for data; the engine logs them itself.
    ray_driver._worker_logs_enabled = False  # noqa: SLF001 - no public switch in Ray 2.60
    previous = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # More workers than CPUs are the user's choice here: both are counts of Ray's alone.
            num_cpus = max(len(os.sched_getaffinity(0)), workers or 0)
            ray.init(
                "local",
                num_cpus=num_cpus,
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    # SystemExit: Ray gives up on a port that is no cluster's by a SIGTERM to its own process.
    except (OSError, RuntimeError, ValueError, failures.RayError, SystemExit) as error:
        what = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterError(
            f"cannot {what}: {_line(error)} Check --address and `ray status` there, and that this "
            "machine is a node of it; `--engine local` needs no Ray.",
            retryable=True,
        ) from error
    else:
        _started(here=address is None)
    finally:
        # Ray's handler would exit with a code of its own in place of the caller's.
        if callable(previous) and current_thread() is main_thread():
            signal.signal(signal.SIGTERM, previous)


def _knock(address: str) -> None:
    """Raise OSError or ValueError where no cluster can be, long before Ray would."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ValueError(
            "that is Ray's client, which would carry every unit over this machine's line. From "
            "outside a cluster use `raymerge submit`; on a node of it give `auto` or host:port."
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError(f"{address!r} is neither `auto` nor host:port.")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def disconnect() -> None:
    """Leave the cluster, or end it if it was started here."""
    if ray.is_initialized():
        ray.shutdown()
    _started(here=False)
    ray_driver._worker_logs_enabled = True  # noqa: SLF001 - see `connect`


def _started(*, here: bool) -> None:
    global _started_here  # noqa: PLW0603 - of a process there is one connection
    _started_here = here


def nodes() -> list[Node]:
    """The machines that are alive."""
    return [
        _node(node["NodeID"], node["NodeManagerHostname"], node["Resources"], node.get("Labels"))
        for node in ray.nodes()
        if node["Alive"]
    ]


def bundles(group: str | None) -> list[Node] | None:
    """The bundles of a placement group as if they were nodes; None if there is no group.

    Args:
        group: Its name; None takes that of this process, if it is in one.

    Raises:
        ClusterError: There is none of that name.
    """
    found = _placement_group(group)
    if found is None:
        return None
    table = ray.util.placement_group_table(found)
    hosts = {node.id: node.host for node in nodes()}
    places = table["bundles_to_node_id"]
    return [
        _node(places[number], hosts[places[number]], resources, None, bundle=number)
        for number, resources in table["bundles"].items()
        if places.get(number) in hosts
    ]


def _placement_group(name: str | None) -> Any:
    if name is None:
        return ray.util.get_current_placement_group()
    try:
        return ray.util.get_placement_group(name)
    except ValueError as error:
        raise ClusterError(
            f"the cluster has no placement group {name!r} in this namespace: {_line(error)}"
        ) from error


def _node(
    node_id: str,
    host: str,
    resources: Mapping[str, float],
    labels: Mapping[str, str] | None,
    *,
    bundle: int | None = None,
) -> Node:
    return Node(
        id=node_id,
        host=host,
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        memory_bytes=int(resources.get("memory", 0)),
        labels=labels or {},
        bundle=bundle,
    )


def draining() -> frozenset[str]:
    """Nodes that are about to go: preempted ones, and those that the autoscaler takes away."""
    try:
        return frozenset(ray_state.state.get_draining_nodes())
    # What Ray's own libraries use; no promise of Ray's, and a missing notice costs a few units.
    except (AttributeError, failures.RayError):
        return frozenset()


def hire(spot: Place, threads: int, *, group: str | None) -> Any:
    """Have Ray start a worker."""
    where: Any
    if spot.bundle is None:
        # Hard: where its node is gone we are told, and choose anew.
        where = NodeAffinitySchedulingStrategy(spot.node, soft=False)
    else:
        where = PlacementGroupSchedulingStrategy(_placement_group(group), spot.bundle)
    return (
        ray.remote(RemoteWorker)
        .options(
            num_cpus=spot.num_cpus,
            num_gpus=spot.num_gpus,
            memory=spot.memory_bytes,
            max_restarts=0,
            max_task_retries=0,
            # The unit that waits its turn, and `stop`, need threads of their own.
            max_concurrency=threads + 2,
            scheduling_strategy=where,
        )
        .remote(threads)
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a SIGTERM until a call of Ray's has ended, in which what a handler raises gets lost.

    Ray makes a SystemExit of any code one of code 1 there, and of other exceptions a SystemError.
    """
    if current_thread() is not main_thread():
        yield
        return
    arrived = Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        if arrived.is_set():
            signal.raise_signal(signal.SIGTERM)


@_undisturbed()
def ended(calls: list[Any], timeout_s: float, *, every: bool = False) -> list[Any]:
    """The calls that have ended, once one has or every one, or the time is up."""
    if not calls:
        # Whoever waits for the first, once a node comes, would otherwise ask without a pause.
        if not every:
            sleep(timeout_s)
        return []
    ready, _ = ray.wait(calls, num_returns=len(calls) if every else 1, timeout=timeout_s)
    if ready and not every:
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
    return list(ready)


@_undisturbed()
def answer(call: Any) -> Any:
    """What a call of a worker gave.

    Raises:
        WorkerLostError: The worker is no more.
        RaymergeError: As the worker raised it; anything unforeseen with its traceback.
    """
    try:
        return ray.get(call)
    except failures.RayTaskError as failure:
        if isinstance(failure.cause, RaymergeError):
            raise failure.cause from failure
        raise ClusterError(str(failure)) from failure
    except _LOST as failure:
        why = Loss.DIED
        if isinstance(failure, failures.OutOfMemoryError):
            why = Loss.MEMORY
        # One that could not start where its node had been was not lost over anything either.
        elif getattr(failure, "preempted", isinstance(failure, failures.ActorUnschedulableError)):
            why = Loss.PREEMPTED
        raise WorkerLostError(_line(failure), why) from failure


def call(function: Callable[..., Any], *arguments: Any, num_cpus: float, num_gpus: float) -> Any:
    """Have Ray call a function once, wherever there is room for what it reserves."""
    task = ray.remote(function).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)
    return task.remote(*arguments)


def cancel(task: Any) -> None:
    """Interrupt a function that Ray was told to call."""
    with suppress(failures.RayError):
        ray.cancel(task)


def end(actor: Any) -> None:
    """End a worker at once."""
    with suppress(failures.RayError):
        ray.kill(actor)


def free() -> str:
    """What nobody uses of the cluster, and what somebody does, for messages."""
    unused, total = ray.available_resources(), ray.cluster_resources()
    used = {name: count - unused.get(name, 0) for name, count in total.items()}
    return f"{_amount(unused)} (held: {_amount(used)})"


def _amount(resources: Mapping[str, float]) -> str:
    memory = format_bytes(int(resources.get("memory", 0)))
    return f"{resources.get('GPU', 0):g} GPU, {resources.get('CPU', 0):g} CPU, {memory}"


def _line(error: BaseException) -> str:
    """The gist of what Ray says over several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line.split(" Some common causes")[0] for line in lines) or repr(error)
