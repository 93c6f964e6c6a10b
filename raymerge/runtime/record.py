"""Our own record beside the shards: what was read, what was written, and with which versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raymerge.checkpoint.index import INDEX_NAME
from raymerge.plan.build import Plan
from raymerge.plan.document import source_document
from raymerge.runtime.ledger import LEDGER_NAMES

_VERSIONS = ("raymerge", "numpy", "numba", "torch")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard as it was written."""

    name: str
    bytes: int
    sha256: str


def run_record(plan: Plan, *, shards: Sequence[ShardRecord], kernels: str) -> bytes:
    """raymerge.json: what is needed to check the output, and to make it again.

    Args:
        plan: What was run.
        shards: What was written.
        kernels: Hash of the kernels' source.
    """
    record = {
        "raymerge": raymerge_version(),
        "digest": plan.digest,
        "recipe": plan.recipe.text,
        "seed": plan.recipe.seed,
        "sources": [
            source_document(source, donor=source.label == plan.donor.label)
            for source in plan.sources
        ],
        **_stages(plan),
        "dropped": list(plan.dropped),
        "shards": [asdict(shard) for shard in shards],
        "ledger": LEDGER_NAMES,
        "versions": {"python": platform.python_version(), **_installed()},
        "kernels": kernels,
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def record_of(raw: bytes, digest: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """raymerge.json, if a finished merge of this very plan has left it.

    Args:
        raw: What the file holds.
        digest: The plan's.
        sizes: Bytes of every file beside it, by name.
    """
    record: dict[str, Any]
    try:
        record = json.loads(raw)
        written = {shard["name"]: shard["bytes"] for shard in record["shards"]}
        ours = record["digest"] == digest and INDEX_NAME in sizes
    except (ValueError, KeyError, TypeError):
        return None
    whole = all(sizes.get(name) == nbytes for name, nbytes in written.items())
    return record if ours and whole else None


def _stages(plan: Plan) -> dict[str, object]:
    """The stages of a recipe of several, the one that is written last."""
    if not plan.stages:
        return {}
    stages = [
        {
            "name": stage.name,
            "method": stage.method.name,
            "seed": stage.seed,
            "sources": [ref.label for ref in stage.all_sources],
        }
        for stage in (*plan.recipe.stages, plan.recipe)
    ]
    return {"stages": stages}


def raymerge_version() -> str:
    """The installed version; of a source tree that is not installed nothing is known."""
    return _installed().get("raymerge", "0+unknown")


@cache
def _installed() -> Mapping[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
