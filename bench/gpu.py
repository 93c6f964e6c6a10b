"""GB/s of every stage of a merge on a device, and of whole merges beside the CPU's.

python -m bench.gpu                        the first CUDA device, on a model of 1.2 G parameters
python -m bench.gpu --tile 4194304         in tiles of another length
python -m bench.gpu --device cpu:0 --model 3m --json    the same code where there is no device

A stage is one tile of the largest tensor of four bfloat16 checkpoints, from memory that holds it
already; bytes are those it takes in, and of the last three those of the output. The plain copy on
the device reads as many bytes and writes as many. A merge is timed from its claim to its commit.
Every merge's bytes are compared with the CPU's: where they differ this ends with 1.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import click
import torch

import raymerge
from bench.gpu_stages import DEVICE_COPY, GB, Stages
from bench.models import LLAMA_1B, LLAMA_3M, LLAMA_150M, LLAMA_TINY, make_family
from bench.tools import METHODS, TIES
from raymerge.machine import GPU_THREADS, MEMORY_SHARE, Machine, memory_limit_bytes, num_cpus
from raymerge.plan.memory import RING_DEPTH
from raymerge.planning import plan_merge
from raymerge.runtime.driver import execute
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import run_settings
from raymerge.storage.store import Access

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.gpu_stages import Stage
    from bench.tools import Method
    from raymerge.plan.build import Plan
    from raymerge.runtime.destination import Destination
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.settings import OnProgress

MODELS = {"tiny": LLAMA_TINY, "3m": LLAMA_3M, "150m": LLAMA_150M, "1b": LLAMA_1B}
MERGES = ("linear", "slerp", "ties", "dare_ties")
"""A sum, one that needs a Gram matrix first, one that needs thresholds, and one that draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A whole merge on the CPU, and on the device with rings of several depths."""

    method: str
    num_bytes: int
    """Read, as often as it is read, and written."""
    cpu_s: float
    device_s: Mapping[int, float]
    """By depth."""
    same_bytes: bool

    def row(self) -> dict[str, Any]:
        """As the document has it."""
        return {
            "method": self.method,
            "bytes": self.num_bytes,
            "cpu_gbps": _gbps(self.num_bytes, self.cpu_s),
            "device_gbps": {
                str(depth): _gbps(self.num_bytes, taken_s)
                for depth, taken_s in self.device_s.items()
            },
            "same_bytes": self.same_bytes,
        }


def plan_of(
    method: Method, models: Path, kind: Literal["cpu", "cuda"], tile: int | None = None
) -> Plan:
    """Plan a merge of checkpoints in a folder."""
    recipe = models / f"{method.name}.yaml"
    recipe.write_text(method.recipe(models))
    machine = Machine(
        engine="local",
        why="measured",
        address=None,
        device=kind,
        processes=1,
        threads=GPU_THREADS if kind == "cuda" else num_cpus(),
        memory_bytes=int(memory_limit_bytes() * MEMORY_SHARE),
    )
    options = {"tile_elements": tile} if tile else {}
    return plan_merge(raymerge.load(recipe), out=None, machine=machine, options=options)  # type: ignore[arg-type]


def run(plan: Plan, out: Path, device: str, depth: int) -> MergeResult:
    """Run a plan with the kernels of a device."""

    def start(destination: Destination, report: OnProgress) -> LocalEngine:
        settings = run_settings(plan, destination.units_at, "cpu")
        budget = replace(settings.budget, depth=depth)
        settings = replace(settings, device=device, budget=budget)  # type: ignore[arg-type]
        return LocalEngine(settings, threads=plan.memory.threads, on_progress=report)

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


def best_s(plan: Plan, out: Path, device: str, depth: int, repeat: int) -> tuple[float, list[str]]:
    """The best time of several, after one that is not counted, and the shards' hashes."""
    taken, found = [], []
    for _ in range(repeat + 1):
        began_s = perf_counter()
        result = run(plan, out, device, depth)
        taken.append(perf_counter() - began_s)
        found = [shard.sha256 for shard in result.shards]
    shutil.rmtree(out)
    return min(taken[1:]), found


def merged(
    name: str,
    models: Path,
    *,
    device: str,
    depths: Sequence[int],
    tile: int | None,
    repeat: int,
) -> Merged:
    """Time a merge on the CPU and on the device."""
    method = next(method for method in METHODS if method.name == name)
    plan = plan_of(method, models, "cpu")
    cpu_s, expected = best_s(plan, models / "out", "cpu", 1, repeat)
    on_device = plan_of(method, models, "cuda", tile)
    found = {depth: best_s(on_device, models / "out", device, depth, repeat) for depth in depths}
    return Merged(
        method=name,
        num_bytes=plan.bytes_read + plan.bytes_written,
        cpu_s=cpu_s,
        device_s={depth: taken_s for depth, (taken_s, _) in found.items()},
        same_bytes=all(hashes == expected for _, hashes in found.values()),
    )


@click.command()
@click.option("--device", default="cuda:0", show_default=True, help="As torch calls it.")
@click.option("--model", type=click.Choice(list(MODELS)), default="1b", show_default=True)
@click.option("--tile", type=int, help="Elements of a tile, instead of the plan's.")
@click.option(
    "--depth", "depths", type=int, multiple=True, default=(1, RING_DEPTH), show_default=True
)
@click.option("--repeat", default=3, show_default=True)
@click.option(
    "--where",
    type=click.Path(file_okay=False, path_type=Path),
    default="/dev/shm/raymerge-bench",  # noqa: S108 - a folder of its own
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print one document.")
def main(
    *,
    device: str,
    model: str,
    tile: int | None,
    depths: Sequence[int],
    repeat: int,
    where: Path,
    as_json: bool,
) -> None:
    """Measure a device's part in merges."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError(f"torch {torch.__version__} finds no CUDA device; --device cpu:0")
    models = where / f"llama-{model}"
    make_family(models, MODELS[model])
    stages = Stages(plan_of(TIES, models, "cuda", tile), device, repeat)
    measured = stages.measured()
    how: dict[str, Any] = {"device": device, "depths": depths, "tile": tile, "repeat": repeat}
    merges = [merged(name, models, **how) for name in MERGES]
    document = {
        "device": _name(device),
        "torch": torch.__version__,
        "model": model,
        "tile_elements": stages.elements,
        "stages": _stage_rows(measured),
        "merges": [one.row() for one in merges],
    }
    click.echo(json.dumps(document) if as_json else "\n".join(_table(document)))
    sys.exit(0 if all(one.same_bytes for one in merges) else 1)


def _name(device: str) -> str:
    found = torch.device(device)
    return torch.cuda.get_device_name(found) if found.type == "cuda" else device


def _gbps(num_bytes: int, taken_s: float) -> float:
    return round(num_bytes / taken_s / GB, 3)


def _stage_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    plain = next(stage.gbps for stage in stages if stage.name == DEVICE_COPY)
    return [
        {
            "stage": stage.name,
            "bytes": stage.num_bytes,
            "gbps": round(stage.gbps, 3),
            "of_device_copy": round(stage.gbps / plain, 4),
        }
        for stage in stages
    ]


def _table(document: Mapping[str, Any]) -> list[str]:
    where = f"{document['device']}, torch {document['torch']}, llama-{document['model']}"
    lines = [
        f"{where}, a tile of {document['tile_elements']:,} elements",
        "",
        f"{'stage':<32}{'GB/s':>10}{'of a device copy':>20}",
    ]
    lines += [
        f"{row['stage']:<32}{row['gbps']:>10.2f}{row['of_device_copy']:>20.3f}"
        for row in document["stages"]
    ]
    depths = list(document["merges"][0]["device_gbps"])
    heads = "".join(f"{f'ring of {depth}':>14}" for depth in depths)
    lines += ["", f"{'whole merge, GB/s':<32}{'CPU':>10}{heads}  bytes"]
    for row in document["merges"]:
        found = "".join(f"{row['device_gbps'][depth]:>14.2f}" for depth in depths)
        same = "the CPU's" if row["same_bytes"] else "DIFFER"
        lines.append(f"{row['method']:<32}{row['cpu_gbps']:>10.2f}{found}  {same}")
    return lines


if __name__ == "__main__":
    main()
