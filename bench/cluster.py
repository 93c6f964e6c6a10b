"""`python -m bench.cluster`: what the driver of a Ray cluster spends on a unit.

Units of a few KB leave workers nothing to do, so that the driver is all there is to see: a merge
of 5,000 of them on 20 workers, from the first to the last receipt, kept as a merge keeps them.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import click
import ray
import torch
from safetensors.torch import save_file

import raymerge
from raymerge.plan.build import Plan
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import claim
from raymerge.runtime.settings import run_settings
from raymerge.storage.store import Access

MEMORY_DISK = "/dev/shm"  # noqa: S108 - a folder of its own is made in it
SAMPLE_S = 0.02
"""Between two looks at the object store."""
ELEMENTS = 1024


def plan_of(folder: Path, num_units: int) -> Plan:
    """A merge of two sources of so many small tensors, each in a shard of its own."""
    for name in ("a", "b"):
        tensors = {
            f"model.layers.{i}.weight": torch.randn(ELEMENTS).bfloat16() for i in range(num_units)
        }
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    recipe = folder / "recipe.yaml"
    models = "".join(f"  - model: {folder / name}\n" for name in "ab")
    knobs = "parameters: {weight: 1.0}\n"
    recipe.write_text(f"merge_method: linear\nmodels:\n{models}{knobs}")
    planned = raymerge.plan(recipe, engine="local", device="cpu", shard_bytes=2 * ELEMENTS)
    assert len(planned.units) == num_units, len(planned.units)
    return planned


class Store:
    """The most that the cluster's object stores have held since this was made."""

    def __init__(self) -> None:
        self.total_bytes = self._free_bytes()
        self.most_bytes = 0
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _free_bytes(self) -> int:
        return int(ray.available_resources().get("object_store_memory", 0))

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.most_bytes = max(self.most_bytes, self.total_bytes - self._free_bytes())

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()


def run(plan: Plan, out: Path, workers: int) -> dict[str, float]:
    """Merge on workers of a cluster of its own; returns the figures."""
    access = Access()
    destination = claim(str(out), plan, names=[], overwrite=True, access=access)
    shards = {shard.name: shard for shard in plan.shards}
    settings = run_settings(plan, destination.units_at, "cpu", access)
    began_s = time.perf_counter()
    engine = ClusterEngine(
        settings,
        workers=workers,
        threads=1,
        address=None,
        memory_bytes=None,
        on_progress=lambda _: None,
    )
    with closing(destination), closing(engine):
        start_s = time.perf_counter() - began_s
        for shard in shards.values():
            destination.prepare(shard)
        store = Store()
        wall_s, cpu_s, keep_s = time.perf_counter(), time.process_time(), 0.0
        for _, receipt in engine.run("merge", plan.units, before=lambda _: None):
            kept_s = time.perf_counter()
            destination.keep(receipt)
            keep_s += time.perf_counter() - kept_s
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        store.close()
        return {
            "units": len(plan.units),
            "workers": engine.workers,
            "start_s": round(start_s, 2),
            "wall_s": round(wall_s, 2),
            "driver_cpu_ms_per_unit": round(1000 * cpu_s / len(plan.units), 3),
            "of_which_receipt_ms": round(1000 * keep_s / len(plan.units), 3),
            "wall_ms_per_unit": round(1000 * wall_s / len(plan.units), 3),
            "redone_units": engine.redone_units,
            "object_store_mb_at_most": round(store.most_bytes / 1e6, 3),
        }


@click.command()
@click.option("--units", default=5000, show_default=True)
@click.option("--workers", default=20, show_default=True)
def main(units: int, workers: int) -> None:
    """Measure and print one JSON document."""
    where = MEMORY_DISK if Path(MEMORY_DISK).is_dir() else None
    with tempfile.TemporaryDirectory(dir=where, prefix="raymerge-bench-") as folder:
        plan = plan_of(Path(folder), units)
        figures = run(plan, Path(folder) / "out", workers)
    ray_cluster.disconnect()
    click.echo(json.dumps({"machine": platform.machine(), **figures}, indent=2))


if __name__ == "__main__":
    main()
