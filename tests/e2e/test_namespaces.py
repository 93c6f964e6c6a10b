"""A cluster of three nodes that reach each other over a network only, each at its own address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from raymerge.runtime.ledger import UNITS_NAME
from tests.conftest import METHOD_KNOBS, Place, shard_hashes
from tests.namespaces import Cluster, Driver, cluster, missing

pytestmark = pytest.mark.ray
SHARD_BYTES = 4000


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    if lacking := missing():
        pytest.skip(f"namespaces of network need {lacking}")
    with cluster(3) as started:
        yield started


@pytest.fixture(scope="module")
def driver(three_nodes: Cluster) -> Driver:
    return Driver(three_nodes)


def hosts_at_work(out: Path) -> set[str]:
    """Names of the hosts whose workers a merge's ledger has."""
    workers = parquet.read_table(out / UNITS_NAME).column("worker").to_pylist()
    return {worker.rpartition(":")[0] for worker in workers}


@pytest.mark.parametrize("method", METHOD_KNOBS)
def test_every_method_gives_the_local_engine_s_bytes_from_three_addresses(
    driver: Driver, place: Place, method: str
) -> None:
    place.llamas()
    recipe = place.any_recipe(method)
    assert place.merge(recipe, "local", "--shard-size", SHARD_BYTES).rc == 0
    result = driver.merge(
        recipe, place / "out", device="cpu", memory_bytes=2**30, shard_bytes=SHARD_BYTES
    )

    assert (result["engine"], result["workers"], result["lost_workers"]) == ("ray", 3, 0)
    assert shard_hashes(place / "out") == shard_hashes(place / "local")
    assert len(shard_hashes(place / "out")) > 3
    at_work = {driver.addresses[host] for host in hosts_at_work(place / "out")}
    assert at_work == {"10.77.0.1", "10.77.0.2", "10.77.0.3"}


def test_the_command_line_merges_on_the_nodes_of_an_address(
    three_nodes: Cluster, place: Place
) -> None:
    place.llamas()
    recipe = place.any_recipe("dare_ties")
    size = ("--shard-size", SHARD_BYTES)
    local = place.merge(recipe, "local", "--json", *size)
    merge = [sys.executable, "-m", "raymerge.cli", "merge", recipe, place / "out", "--json", *size]
    on = ["--engine", "ray", "--address", three_nodes.address, "--device", "cpu"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = three_nodes.spawn(*merge, *on, "--memory", "1GiB", **pipes)
    out, err = process.communicate(timeout=200)

    assert process.returncode == 0, err
    assert json.loads(out)["shards"] == local.json["shards"]
    assert hosts_at_work(place / "out") <= three_nodes.hosts.keys()
