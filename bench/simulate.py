"""What `raymerge simulate` foretells: beside real runs on this machine, and on 64 GPUs.

python -m bench.simulate rates      GB/s of each family of kernels, which a forecast rests on
python -m bench.simulate check      forecasts beside real runs of both engines
python -m bench.simulate scaling    both engines on as many threads
python -m bench.simulate balance    64 GPUs on 405B dense and a 671B mixture
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import raymerge
from bench import moe
from bench.lines import Line
from bench.models import LLAMA_405B, LlamaShape, make_family, make_headers
from bench.moe import MOE_671B
from bench.sweep import LLAMA_400M
from bench.tools import METHODS
from raymerge.machine import Machine
from raymerge.plan.units import dispatch_order
from raymerge.planning import plan_merge
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination, claim
from raymerge.runtime.engine import Engine
from raymerge.runtime.filling import Filling, names_of
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import RunSettings, run_settings
from raymerge.runtime.simulation.fleet import CORE_GBPS, GB, Family, Fleet
from raymerge.runtime.simulation.result import simulate
from raymerge.storage.store import Access

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymerge.plan.build import Plan

FAMILIES: Mapping[Family, str] = {
    "copy": "passthrough",
    "span": "linear",
    "delta": "ties",
    "drawn": "dare_ties",
    "free": "sce",
}
"""A method of each."""
LLAMA_300M = LlamaShape(
    hidden=1536, layers=8, heads=16, kv_heads=4, intermediate=6144, vocab=32_000
)
"""0.33 G parameters, 0.66 GB: what rates are measured on."""
UNLIMITED_GBPS = 1e6
MEMORY_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """A run on this machine, and the cluster that it is in a forecast."""

    engine: Literal["local", "ray"]
    workers: int
    """Threads of the local engine, workers of one thread of Ray."""
    read_gbps: float | None = None
    """Of a line to the sources, which each process has to itself; None reads cached files."""

    def fleet(self, merge_gbps: Mapping[Family, float]) -> Fleet:
        """The cluster."""
        nodes = self.workers if self.engine == "ray" else 1
        threads = self.workers // nodes
        return Fleet(
            nodes=nodes,
            gpus_per_node=0,
            cpus_per_node=threads,
            threads=threads,
            read_gbps=self.read_gbps or UNLIMITED_GBPS,
            write_gbps=UNLIMITED_GBPS,
            merge_gbps=merge_gbps,
        )

    def plan(self, models: Path, method: str) -> Plan:
        """Plan a merge of checkpoints in a folder."""
        recipe = models / f"{method}.yaml"
        recipe.write_text(next(m for m in METHODS if m.name == method).recipe(models))
        threads = self.workers if self.engine == "local" else 1
        machine = Machine(
            engine=self.engine,
            why="measured",
            address=None,
            device="cpu",
            processes=None,
            threads=threads,
            memory_bytes=MEMORY_BYTES,
        )
        afar = self.read_gbps is not None
        return plan_merge(raymerge.load(recipe), out=None, machine=machine, options={}, afar=afar)

    def seconds(self, plan: Plan, out: Path, repeat: int) -> float:
        """Run a plan on one engine; returns the best time from the first unit to the last.

        The first run is not counted: in it processes load kernels, and caches are filled. The best,
        since what else goes on here only ever takes time.
        """
        access = Access()
        shutil.rmtree(out, ignore_errors=True)
        destination = claim(str(out), plan, names=names_of(plan), overwrite=True, access=access)
        settings = run_settings(plan, destination.units_at, "cpu", access)
        if self.read_gbps is not None:
            settings = replace(settings, open_source=Line(self.read_gbps * GB))
        with closing(destination), closing(self._start(settings)) as engine:
            spent = [_run(plan, destination, engine) for _ in range(repeat + 1)]
        shutil.rmtree(out)
        return min(spent[1:])

    def _start(self, settings: RunSettings) -> Engine:
        if self.engine == "local":
            return LocalEngine(settings, threads=self.workers, on_progress=lambda _: None)
        return ClusterEngine(
            settings,
            workers=self.workers,
            threads=1,
            address=None,
            memory_bytes=None,
            on_progress=lambda _: None,
        )


def _run(plan: Plan, destination: Destination, engine: Engine) -> float:
    with closing(Filling(plan, destination)) as filling:
        filling.prepare_ahead()
        units = dispatch_order(plan.units)
        for unit in units:
            filling.prepare(unit)
        began_s = time.perf_counter()
        for unit, receipt in engine.run("merge", units, before=lambda _: None):
            filling.land(unit, receipt)
        return time.perf_counter() - began_s


def rates_of(models: Path, repeat: int) -> dict[Family, float]:
    """GB/s that one of two threads takes in for each sweep, from cached files."""
    real, found = Real(engine="local", workers=2), {}
    for family, method in FAMILIES.items():
        plan = real.plan(models, method)
        # By a forecast, so that a thread that ends before the other does not count as slow.
        foretold_s = simulate(plan, real.fleet(dict.fromkeys(FAMILIES, 1.0))).seconds
        taken_s = real.seconds(plan, models / "out", repeat)
        found[family] = round(foretold_s / taken_s, 3)
    return found


@click.group()
@click.option(
    "--where",
    type=click.Path(file_okay=False, path_type=Path),
    default="/dev/shm/raymerge-bench",  # noqa: S108 - a folder of its own
    show_default=True,
)
@click.option("--repeat", default=3, show_default=True)
@click.pass_context
def main(context: click.Context, where: Path, repeat: int) -> None:
    """Measure; prints a line of JSON for each figure."""
    context.obj = where, repeat


@main.command()
@click.pass_obj
def rates(chosen: tuple[Path, int]) -> None:
    """Measure what forecasts rest on."""
    where, repeat = chosen
    _tell(rates_of(_family(where, LLAMA_300M), repeat))


CHECKS = (
    ("linear", Real(engine="local", workers=2)),
    ("ties", Real(engine="local", workers=2)),
    ("ties", Real(engine="local", workers=1)),
    ("dare_ties", Real(engine="ray", workers=2)),
    ("ties", Real(engine="ray", workers=2)),
    ("linear", Real(engine="local", workers=2, read_gbps=0.5)),
    ("ties", Real(engine="local", workers=2, read_gbps=0.5)),
    ("linear", Real(engine="ray", workers=2, read_gbps=0.25)),
    ("ties", Real(engine="ray", workers=2, read_gbps=0.25)),
)


@main.command()
@click.pass_obj
def check(chosen: tuple[Path, int]) -> None:
    """Measure rates on one model, and foretell and time merges of another."""
    where, repeat = chosen
    merge_gbps = rates_of(_family(where, LLAMA_300M), repeat)
    _tell({"merge_gbps": merge_gbps})
    models = _family(where, LLAMA_400M)
    for method, real in CHECKS:
        plan = real.plan(models, method)
        foretold_s = simulate(plan, real.fleet(merge_gbps)).seconds
        measured_s = real.seconds(plan, models / "out", repeat)
        _tell(
            {
                "method": method,
                "engine": real.engine,
                "workers": real.workers,
                "line_gbps": real.read_gbps,
                "foretold_s": round(foretold_s, 2),
                "measured_s": round(measured_s, 2),
                "error": round(foretold_s / measured_s - 1, 3),
            }
        )
    ray_cluster.disconnect()


@main.command()
@click.argument("engine", type=click.Choice(["local", "ray"]))
@click.argument("workers", type=int)
@click.pass_obj
def once(chosen: tuple[Path, int], engine: Literal["local", "ray"], workers: int) -> None:
    """Time TIES on one engine."""
    where, repeat = chosen
    real = Real(engine=engine, workers=workers)
    models = _family(where, LLAMA_300M)
    click.echo(round(real.seconds(real.plan(models, "ties"), models / "out", repeat), 3))


@main.command()
@click.pass_obj
def scaling(chosen: tuple[Path, int]) -> None:
    """Time the engines in turn on as many threads, each in a process of its own."""
    where, repeat = chosen
    _family(where, LLAMA_300M)
    for workers in (1, 2):
        taken: dict[str, list[float]] = {"local": [], "ray": []}
        for engine in ("local", "ray", "local", "ray"):
            words = ["--where", where, "--repeat", repeat, "once", engine, workers]
            command = [sys.executable, "-m", "bench.simulate", *map(str, words)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            taken[engine].append(float(done.stdout))
        local_s, ray_s = (min(times) for times in taken.values())
        _tell(
            {
                "workers": workers,
                "local_s": round(local_s, 2),
                "ray_s": round(ray_s, 2),
                "ray_over_local": round(ray_s / local_s, 3),
                "all": taken,
            }
        )


@main.command()
@click.pass_obj
def balance(chosen: tuple[Path, int]) -> None:
    """Simulate 64 GPUs, from the headers of sparse checkpoints."""
    dense, mixture = chosen[0] / "llama-405b", chosen[0] / "moe-671b"
    make_headers(dense, LLAMA_405B)
    moe.make_family(mixture, MOE_671B)
    for models in (dense, mixture):
        for method in ("linear", "ties"):
            recipe = models / f"{method}.yaml"
            recipe.write_text(next(m for m in METHODS if m.name == method).recipe(models))
            for storage in ("objects", "files"):
                for line_gbps, kernel_gbps in ((12.5, 100.0), (50.0, 2.0), (12.5, 5.0)):
                    found = raymerge.simulate(
                        recipe,
                        nodes=8,
                        gpus_per_node=8,
                        read_gbps=line_gbps,
                        write_gbps=line_gbps,
                        merge_gbps=dict.fromkeys(CORE_GBPS, kernel_gbps),
                        storage=storage,
                    )
                    _tell(
                        {
                            "model": models.name,
                            "method": method,
                            "storage": storage,
                            "line_gbps": line_gbps,
                            "kernel_gbps": kernel_gbps,
                            "units": found.units,
                            "seconds": found.seconds,
                            "utilisation": found.utilisation,
                            "idle_tail": found.idle_tail,
                            "bound_by": found.bound_by,
                            "bound_share": found.bound_share,
                        }
                    )


def _family(where: Path, shape: LlamaShape) -> Path:
    folder = where / f"llama-{shape.num_bytes // 1000}kB"
    make_family(folder, shape)
    return folder


def _tell(figures: Mapping[Any, Any]) -> None:
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
