"""Catalogs, recipes and plans made in memory: no file behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.header import TensorEntry
from raymerge.plan.build import Plan, PlanOptions, build
from raymerge.recipe import Recipe, loads

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"

Tensors = Mapping[str, tuple[DType, tuple[int, ...]]]
MODEL: Tensors = {
    EMBEDDING: (DType.BF16, (32, 16)),
    UP: (DType.BF16, (64, 16)),
    DOWN: (DType.BF16, (16, 64)),
    NORM: (DType.BF16, (16,)),
    HEAD: (DType.BF16, (32, 16)),
}
"""A language model of two layers with a head of its own."""
TIED: Tensors = {name: kind for name, kind in MODEL.items() if name != HEAD}

GIB = 2**30


def without(tensors: Tensors, *names: str) -> Tensors:
    """The tensors but for some."""
    return {name: kind for name, kind in tensors.items() if name not in names}


def catalog(
    label: str,
    tensors: Tensors = MODEL,
    *,
    config: Mapping[str, Any] | None = None,
    side_files: Sequence[str] = (),
    tag: str = "1-1",
    location: str | None = None,
) -> Catalog:
    """A source that holds `tensors` one behind another in one file."""
    start = 1024
    entries = {}
    for name, (dtype, shape) in tensors.items():
        stop = start + dtype.num_bytes(shape)
        entries[name] = TensorEntry(name, dtype, shape, "model.safetensors", start, stop)
        start = stop
    return Catalog(
        label=label,
        location=location or f"/models/{label}",
        tensors=entries,
        pins={"model.safetensors": Pin(start, tag)},
        config=config or {},
        side_files=tuple(side_files),
    )


def recipe(method: str = "linear", *sources: str, base: str | None = None, **top: Any) -> Recipe:
    """A recipe of `method` over the sources named, all of weight 1 where the method has weights."""
    knobs = {} if method in {"passthrough", "slerp"} else {"weight": 1.0}
    document: dict[str, Any] = {
        "merge_method": method,
        "models": list(sources or ("a", "b")),
        **({"base_model": base} if base else {}),
        **top,
        "parameters": {**knobs, **top.get("parameters", {})},
    }
    return loads(json.dumps(document), path="r.yaml")


def plan(merge: Recipe, catalogs: Sequence[Catalog] | None = None, **options: Any) -> Plan:
    """The plan of a recipe, over sources that all hold `MODEL` if none are given."""
    if catalogs is None:
        catalogs = [catalog(source.label) for source in merge.all_sources]
    limits = PlanOptions(**{"memory_bytes": 4 * GIB, "threads": 2, **options})
    return build(merge, catalogs, limits)
