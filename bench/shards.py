"""The files of a synthetic checkpoint: which tensor lies where, headers, index, config."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INDEX_NAME = "model.safetensors.index.json"
ITEM_BYTES = 2
"""Every tensor is bfloat16."""

Tensor = tuple[str, tuple[int, ...]]
"""Name and shape."""


def num_bytes(tensor: Tensor) -> int:
    """Bytes of one tensor."""
    return prod(tensor[1]) * ITEM_BYTES


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name and its tensors, in the order they lie in it."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(map(num_bytes, self.tensors))

    def header(self) -> bytes:
        """The length prefix and the JSON, padded so that the first tensor is aligned."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for tensor in self.tensors:
            end = start + num_bytes(tensor)
            name, shape = tensor
            entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def split_into_shards(tensors: Sequence[Tensor], *, max_shard_bytes: int) -> list[Shard]:
    """Fill shards in order; one closes when the next tensor would take it over the limit."""
    groups: list[list[Tensor]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        if groups[-1] and filled_bytes + num_bytes(tensor) > max_shard_bytes:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(tensor)
        filled_bytes += num_bytes(tensor)
    return [
        Shard(f"model-{i:05}-of-{len(groups):05}.safetensors", tuple(group))
        for i, group in enumerate(groups, start=1)
    ]


def write_headers(folder: Path, shards: Sequence[Shard]) -> list[int]:
    """Create every shard at full size, header real and data a hole; say where the data begin."""
    folder.mkdir(parents=True)
    data_starts = []
    for shard in shards:
        header = shard.header()
        with (folder / shard.name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + shard.data_bytes)
        data_starts.append(len(header))
    return data_starts


def write_index(folder: Path, shards: Sequence[Shard], config: dict[str, Any]) -> None:
    """Write the config and, last, the index: a folder with an index is a whole checkpoint."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name, _ in shard.tensors},
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def write_holes(
    folders: Sequence[Path],
    tensors: Sequence[Tensor],
    config: dict[str, Any],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write checkpoints whose headers are real and whose data are holes, unless all are there."""
    if all(map(is_whole, folders)):
        return
    layout = split_into_shards(tensors, max_shard_bytes=max_shard_bytes)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        write_headers(folder, layout)
        write_index(folder, layout, config)


def is_whole(folder: Path) -> bool:
    """Whether an earlier run finished this checkpoint."""
    return (folder / INDEX_NAME).exists()


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a checkpoint, in order."""
    return sorted(folder.glob("*.safetensors"))


def data_bytes(folder: Path) -> int:
    """Bytes of all tensors of a checkpoint, headers aside, so that two writers can be compared."""
    total_bytes = 0
    for path in shard_paths(folder):
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        total_bytes += path.stat().st_size - 8 - header_bytes
    return total_bytes
