"""How often a plan asks: of a checkpoint shaped like a Llama of 70 B parameters, four times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import raymerge
from tests import sites
from tests.checkpoints import llama_config, tiny_llama_tensors, write_checkpoint
from tests.servers.hub_state import Hub
from tests.servers.proxy import Proxy
from tests.servers.seaweed import S3

LAYERS, SHARDS, TENSORS = 80, 30, 723
SHARD_BYTES = 248
SOURCES = ("base", "a", "b", "c")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, shards and counts of a Llama of 70 B parameters, its tensors as small as can be."""
    folder = tmp_path_factory.mktemp("seventy")
    for seed, name in enumerate(SOURCES):
        tensors = tiny_llama_tensors(seed, layers=LAYERS, hidden=2, vocab=16)
        assert len(tensors) == TENSORS
        config = llama_config(tensors)
        write_checkpoint(folder / name, tensors, max_shard_bytes=SHARD_BYTES, config=config)
        assert len(list((folder / name).glob("*.safetensors"))) == SHARDS
    return folder


def recipe(folder: Path, *locations: str) -> Path:
    base, *models = locations
    document = {
        "merge_method": "ties",
        "base_model": base,
        "models": models,
        "parameters": {"weight": 0.5, "density": 0.4},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(document))
    return path


def test_a_plan_asks_a_bucket_at_most_three_times_a_shard(
    models: Path, s3: S3, s3_proxy: Proxy, tmp_path: Path
) -> None:
    for name in SOURCES:
        sites.store(models / name, s3.url(name))
    s3_proxy.log.clear()

    plan = raymerge.plan(recipe(tmp_path, *map(s3.url, SOURCES)), device="cpu", engine="local")

    assert len(plan.nodes) == TENSORS
    by_object = s3_proxy.requests_by_object
    shards = {path: number for path, number in by_object.items() if path.endswith(".safetensors")}
    assert len(shards) == SHARDS * len(SOURCES)
    assert max(shards.values()) <= 2
    # Per source: a listing, the index, config.json.
    assert len(s3_proxy.log) <= 2 * len(shards) + 3 * len(SOURCES)
    assert s3_proxy.bytes_down < 2e6


def test_a_plan_or_a_merge_asks_the_api_of_the_hub_once_a_source(
    models: Path, hub: Hub, tmp_path: Path
) -> None:
    for name in SOURCES:
        sites.on_hub(models / name, hub, f"org/{name}")
    path = recipe(tmp_path, *(f"hf://org/{name}" for name in SOURCES))
    hub.counts.clear()

    plan = raymerge.plan(path, device="cpu", engine="local", cache=False)

    assert len(plan.nodes) == TENSORS
    assert hub.counts["api"] == len(SOURCES)
    # An address and what lies there, of each shard, the index and config.json.
    assert hub.counts.total() - hub.counts["api"] <= 2 * (SHARDS + 2) * len(SOURCES)

    hub.counts.clear()
    raymerge.merge(path, tmp_path / "out", device="cpu", engine="local", workers=2, cache=False)
    assert hub.counts["api"] == len(SOURCES)
