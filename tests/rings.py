"""Merges whose tiles go through a ring: torch on `cpu:0`, whose tensors any machine has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import raymerge
from raymerge.plan.build import Plan
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.engine import Engine
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import OnProgress, run_settings
from raymerge.storage.store import Access
from tests.checkpoints import fine_tune, tiny_llama_tensors
from tests.conftest import Place

GPU: Any = "cpu:0"
SHARD_BYTES = 200_000


def ring_models(place: Place) -> None:
    """`base`, `a` and `b`: small tensors, and three that take several tiles."""
    base = tiny_llama_tensors(0, layers=1)
    generator = torch.Generator().manual_seed(9)
    shapes = {"tall.weight": (4039, 67), "wide.weight": (130, 1031), "flat": (2**17 + 3,)}
    for name, shape in shapes.items():
        base[name] = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
    for name, tensors in (("base", base), ("a", fine_tune(base, 1)), ("b", fine_tune(base, 2))):
        place.model(name, tensors)


def ring_plan(recipe: Path, tile: int | None, **options: Any) -> Plan:
    """A plan for one thread, which as such knows no ring."""
    call: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 1, **options}
    return raymerge.plan(recipe, tile_elements=tile, shard_bytes=SHARD_BYTES, **call)


def through_ring(
    plan: Plan,
    out: Path,
    *,
    depth: int,
    threads: int = 2,
    device: Any = GPU,
) -> MergeResult:
    """Run a plan with torch on a device, through rings of so many tiles."""

    def start(destination: Destination, report: OnProgress) -> Engine:
        settings = run_settings(plan, destination.units_at, "cuda")
        budget = replace(settings.budget, depth=depth)
        settings = replace(settings, budget=budget, device=device)
        return LocalEngine(settings, threads=threads, on_progress=report)

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


def hashes(result: MergeResult) -> dict[str, str]:
    """sha256 of every shard."""
    return {shard.name: shard.sha256 for shard in result.shards}
