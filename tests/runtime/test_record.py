"""Our own record, raymerge.json."""

from __future__ import annotations

import json

from raymerge.checkpoint.consistency import recorded_shards
from raymerge.runtime.record import ShardRecord, run_record
from tests.plans import NORM, plan, recipe


def test_the_record_has_what_a_check_and_a_repeat_need() -> None:
    made = plan(recipe("linear", "a", "b", seed=9, drop=NORM))
    shards = [ShardRecord("model-00001-of-00001.safetensors", 12, "ab" * 32)]
    record = json.loads(run_record(made, shards=shards, kernels="c0ffee"))

    assert list(record) == [
        "raymerge",
        "digest",
        "recipe",
        "seed",
        "sources",
        "dropped",
        "shards",
        "ledger",
        "versions",
        "kernels",
    ]
    assert (record["digest"], record["seed"], record["kernels"]) == (made.digest, 9, "c0ffee")
    assert record["recipe"] == made.recipe.text
    assert record["dropped"] == [NORM]
    assert record["sources"][1]["files"] == [
        {
            "name": "model.safetensors",
            "bytes": made.sources[1].pins["model.safetensors"].size_bytes,
            "tag": "1-1",
        }
    ]
    assert {"python", "numpy", "numba"} <= {*record["versions"]}
    assert [ShardRecord(**shard) for shard in record["shards"]] == shards


def test_verify_reads_the_record() -> None:
    shards = [ShardRecord("model-00001-of-00002.safetensors", 12, "ab" * 32)]
    record = json.loads(run_record(plan(recipe("linear", "a", "b")), shards=shards, kernels="k"))

    found = recorded_shards(record)
    assert found[shards[0].name].size_bytes == 12
    assert found[shards[0].name].sha256 == "ab" * 32


def test_a_record_is_the_same_every_time() -> None:
    made = plan(recipe("ties", "a", "b", base="base"))

    assert run_record(made, shards=[], kernels="k") == run_record(made, shards=[], kernels="k")
