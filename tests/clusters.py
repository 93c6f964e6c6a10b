"""A Ray cluster of several nodes on this machine, which can be harmed."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.experimental import internal_kv

from raymerge.plan.graph import PlannedSource
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.storage.store import Access
from tests.distant import DistantFolder

OBJECT_STORE_BYTES = 80_000_000
NOTICE_S = 2.0
"""Between a notice and the end of a node; clouds give 30 to 120."""
PREEMPTION = 2
"""Ray's number of the reason."""
ENVIRONMENT = {
    # A dead node is found in a second instead of in ten.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "2",
    # Else workers get next to nothing of cores on which anything else runs.
    "RAY_worker_niceness": "0",
    # Every node sees the memory of the whole machine, and what else runs on it.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Nodes:
    """A head that runs no unit, and nodes with CPUs and GPUs that only Ray believes in.

    Args:
        number: Nodes besides the head.
        resources: Of each: `num_cpus`, `num_gpus`, `labels`.
    """

    def __init__(self, number: int, **resources: Any) -> None:
        self._resources = resources
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            },
        )
        # For the others it would set signal handlers, which only the main thread can, and nodes
        # join from any. Without a head they end by themselves.
        self._cluster._shutdown_at_exit = False  # noqa: SLF001
        self.there: list[Any] = [self._add() for _ in range(number)]
        self.address: str = self._cluster.address

    def _add(self) -> Any:
        return self._cluster.add_node(object_store_memory=OBJECT_STORE_BYTES, **self._resources)

    def join(self) -> None:
        """One more node."""
        self.there.append(self._add())

    def kill(self, node: Any) -> None:
        """End a node without a word, unless that was said before."""
        if node in self.there:
            self.there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    @staticmethod
    def await_missed(gone: Any) -> None:
        """Return once Ray has noticed that a node is gone; until then it offers it."""
        give_up_s = time.monotonic() + 30
        while any(node.id == gone.node_id for node in ray_cluster.nodes()):
            assert time.monotonic() < give_up_s, gone.node_id
            time.sleep(0.1)

    def drain(self, node: Any, deadline_s: float) -> None:
        """Give notice that a node is going to be taken away."""
        self.there.remove(node)
        deadline_ms = int((time.time() + deadline_s) * 1000)
        client = ray._raylet.GcsClient(address=self.address)  # noqa: SLF001
        assert client.drain_node(node.node_id, PREEMPTION, "spot reclaim", deadline_ms)[0]

    @contextmanager
    def autoscaled(self) -> Iterator[None]:
        """As if there were an autoscaler that may bring more nodes, but never does."""
        client = ray._raylet.GcsClient(address=self.address)  # noqa: SLF001
        config = ClusterConfig()
        group = config.node_group_configs.add()
        group.name, group.max_count = "spot", 99
        group.resources["CPU"] = 2
        client.report_cluster_config(config.SerializeToString())
        try:
            yield
        finally:
            client.report_cluster_config(ClusterConfig().SerializeToString())

    def wanted(self) -> list[dict[str, float]]:
        """What an autoscaler has been told."""
        told = internal_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)  # noqa: SLF001
        wanted: list[dict[str, float]] = json.loads(told or "[]")
        return wanted

    def close(self) -> None:
        """End everything."""
        self._cluster.shutdown()


@contextmanager
def nodes(number: int, **resources: Any) -> Iterator[Nodes]:
    """A cluster that this process is part of."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ |= ENVIRONMENT
    try:
        cluster = Nodes(number, **resources)
        try:
            ray_cluster.connect(cluster.address, workers=None)
            yield cluster
        finally:
            ray_cluster.disconnect()
            cluster.close()
            # Ray leaves handles of processes that it has ended without a look, for which a test
            # would be told off long after it.
            del cluster
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, slots=True)
class Far:
    """Opens sources as if they were far away, so that units take their time."""

    latency_s: float

    def __call__(self, source: PlannedSource, _access: Access) -> DistantFolder:
        return DistantFolder(Path(source.location), latency_s=self.latency_s)


class Killer:
    """Harms a cluster every second or two while an engine works on it.

    Args:
        cluster: Whose nodes come and go; some are always left.
        engine: Whose workers are killed.
        seed: Of what happens, and when.
        patient: Wait besides until work has gone on since the last harm, on a machine however slow.
    """

    LEAST, MOST = 2, 5

    def __init__(
        self, cluster: Nodes, engine: ClusterEngine, *, seed: int, patient: bool = False
    ) -> None:
        self.done: list[str] = []
        """What has happened so far."""
        self.recovered = Event()
        """To be set when work goes on."""
        self._patient = patient
        self._cluster = cluster
        self._engine = engine
        self._random = random.Random(seed)
        self._over = Event()
        self._threads = [Thread(target=self._go_on)]

    def _go_on(self) -> None:
        while not self._over.wait(self._random.uniform(1, 2)):
            while self._patient and not self.recovered.wait(0.1):
                if self._over.is_set():
                    return
            self.recovered.clear()
            number = len(self._cluster.there)
            acts = [self._kill_worker]
            acts += [self._kill_node, self._preempt] if number > self.LEAST else []
            acts += [self._join] if number < self.MOST else []
            act = self._random.choice(acts)
            act()
            self.done.append(act.__name__.strip("_"))

    def _kill_worker(self) -> None:
        reports = [member.report for member in list(self._engine.crew.members.values())]
        started = [report.pid for report in reports if report]
        if started:
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(started), signal.SIGKILL)

    def _kill_node(self) -> None:
        self._cluster.kill(self._random.choice(self._cluster.there))

    def _preempt(self) -> None:
        node = self._random.choice(self._cluster.there)
        self._cluster.drain(node, NOTICE_S)

        def reclaim() -> None:
            self._over.wait(NOTICE_S)
            self._cluster.kill(node)

        self._meanwhile(reclaim)

    def _join(self) -> None:
        def join() -> None:
            # Ray's own words for a node that does not get up in time on a busy machine: it is one
            # of the things that happen.
            with suppress(Exception):
                self._cluster.join()

        self._meanwhile(join)

    def _meanwhile(self, act: Callable[[], None]) -> None:
        self._threads.append(Thread(target=act))
        self._threads[-1].start()

    def start(self) -> None:
        """Begin."""
        self._threads[0].start()

    def stop(self) -> None:
        """Return once nothing more happens."""
        self._over.set()
        while self._threads:
            self._threads.pop(0).join()
