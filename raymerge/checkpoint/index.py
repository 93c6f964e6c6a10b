"""`model.safetensors.index.json`: which shard holds which tensor. Writing it is the commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

from raymerge.checkpoint.layout import Shard
from raymerge.checkpoint.strict_json import parse_object
from raymerge.errors import SourceError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
RECORD_NAME = "raymerge.json"
"""Our own record, which a merge leaves beside the shards."""

# huggingface_hub refuses an index above this (MAX_INDEX_FILE_SIZE); 90,000 long names come close.
_MAX_PRETTY_BYTES = 10 * 2**20


def parse_index(
    raw: bytes, *, source: str, file: str, endings: tuple[str, ...] = (".safetensors",)
) -> Mapping[str, str]:
    """Read an index's weight map, tensor name to file name. Its totals are not trusted, nor read.

    Args:
        raw: The JSON.
        source: Label of the source, for messages.
        file: Name of the index, for messages.
        endings: What the names of shards may end in.

    Raises:
        SourceError: Not an index, or a file name that leads out of the folder.
    """
    weight_map = parse_object(raw, file=file, source=source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        why = "has no weight_map; expected an object that gives each tensor its file"
        raise SourceError(f"{source}: {file} {why}", source=source, file=file)
    plain: set[str] = set()
    for tensor, shard in weight_map.items():
        if isinstance(shard, str) and (shard in plain or _is_plain(shard, endings)):
            plain.add(shard)
            continue
        raise SourceError(
            f"{source}: {file} places tensor {tensor!r} in {shard!r}; expected the name "
            f"of a {' or '.join(endings)} file in the same folder",
            source=source,
            tensor=tensor,
            file=file,
        )
    return weight_map


def build_index(shards: Sequence[Shard]) -> bytes:
    """Write the index of a layout as transformers does, compact where that would pass 10 MiB."""
    slots = [(slot, shard.name) for shard in shards for slot in shard.slots]
    index = {
        "metadata": {
            "total_parameters": sum(prod(slot.shape) for slot, _ in slots),
            "total_size": sum(slot.nbytes for slot, _ in slots),
        },
        "weight_map": {slot.name: name for slot, name in slots},
    }
    pretty = json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"
    if len(pretty) <= _MAX_PRETTY_BYTES:
        return pretty
    return json.dumps(index, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _is_plain(name: str, endings: tuple[str, ...]) -> bool:
    return name.endswith(endings) and not set(name) & set("/\\\0") and name[0] != "."
