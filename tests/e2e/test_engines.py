"""Both engines give equal bytes: every method, here and on four nodes with eight GPUs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pyarrow import parquet

import raymerge
from raymerge.runtime.ledger import TENSORS_NAME, UNITS_NAME
from tests.clusters import nodes
from tests.conftest import METHOD_KNOBS, Place, finish, shard_hashes, spawn

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHOD_KNOBS},
    "ties, trim: model": ("ties", {"trim": "model"}),
}
ON_ALL_NODES = ("della", "karcher", "sce", "ties, trim: model")
"""One of each family, and one with a survey: every worker is a process that starts for a second."""
SHARD_BYTES = 4000


@pytest.fixture(scope="module")
def _four_nodes() -> Iterator[None]:
    with nodes(4, num_cpus=2, num_gpus=2):
        yield


@pytest.mark.usefixtures("_four_nodes")
@pytest.mark.parametrize("case", CASES)
def test_ray_gives_the_bytes_of_the_local_engine(place: Place, case: str) -> None:
    place.llamas()
    method, top = CASES[case]
    recipe = place.any_recipe(method, **top)
    workers, asked = (4, None) if case in ON_ALL_NODES else (2, 2)
    runs: list[tuple[Literal["local", "ray"], int | None]] = [("local", 2), ("ray", asked)]
    merges = [
        raymerge.merge(
            recipe,
            place / engine,
            engine=engine,
            device="cpu",
            workers=number,
            memory_bytes=2**30,
            shard_bytes=SHARD_BYTES,
        )
        for engine, number in runs
    ]
    hashes = [{shard.name: shard.sha256 for shard in merge.shards} for merge in merges]

    assert [(merge.engine, merge.workers) for merge in merges] == [("local", 2), ("ray", workers)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) > 2
    for merge in merges:
        assert shard_hashes(Path(merge.output)) == hashes[0]
    assert {(m.tensors, m.bytes_read, m.bytes_written) for m in merges} == {
        (merges[0].tensors, merges[0].bytes_read, merges[0].bytes_written)
    }


@pytest.mark.usefixtures("_four_nodes")
def test_a_ledger_names_the_workers_of_ray(place: Place) -> None:
    place.llamas()
    out = place / "out"
    raymerge.merge(
        place.any_recipe("ties"),
        out,
        engine="ray",
        device="cpu",
        workers=2,
        memory_bytes=2**30,
        shard_bytes=SHARD_BYTES,
        stats=True,
    )
    units = parquet.read_table(out / UNITS_NAME).to_pylist()
    tensors = parquet.read_table(out / TENSORS_NAME).to_pylist()
    workers = {unit["unit"]: unit["worker"] for unit in units}

    assert 1 <= len(set(workers.values())) <= 2
    assert f"{socket.gethostname()}:{os.getpid()}" not in workers.values()
    assert all(worker.startswith(f"{socket.gethostname()}:") for worker in workers.values())
    assert all(tensor["worker"] == workers[tensor["unit"]] for tensor in tensors)
    assert all(len(tensor["norms"]) == 2 and len(tensor["cosines"]) == 1 for tensor in tensors)


def test_the_command_line_starts_a_ray_of_its_own(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("dare_ties")
    options = ["--device", "cpu", "--workers", 2, "--shard-size", SHARD_BYTES, "--memory", "1GiB"]
    local = place.run("merge", recipe, place / "local", "--engine", "local", "--json", *options)
    process = spawn("merge", recipe, place / "ray", "--engine", "ray", "--json", *options)
    done = finish(process, 120)

    assert done.rc == 0, done.err
    assert (done.json["engine"], done.json["workers"], done.json["retries"]) == ("ray", 2, 0)
    assert done.json["shards"] == local.json["shards"]
    assert "engine ray (as asked)" in done.err
