"""Where every tensor of a source lies, from its headers alone.

Files contradict each other: an index names a shard that was never uploaded, a shard holds a tensor
no index mentions, a stale `model.safetensors` sits beside a newer index. Loaders differ in what
they do then, and so in the model they see. Here each of these is an error that names the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from raymerge.checkpoint.folder import Folder, Pin
from raymerge.checkpoint.header import Header, TensorEntry, read_pinned_header
from raymerge.checkpoint.index import INDEX_NAME, SINGLE_NAME, parse_index
from raymerge.checkpoint.lora import Lora
from raymerge.checkpoint.strict_json import parse_config
from raymerge.errors import SourceError

CONFIG_NAME = "config.json"
# A member of a set of shards, as all writers name them.
NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")

# Reads in flight while headers are fetched: a remote header is two round trips and little else.
_PARALLEL_READS = 16
_ADAPTER = "adapter_model.safetensors"
PICKLED = (".bin", ".pt", ".pth")
# Never copied beside a merged model: other people's weights, which are not merged.
WEIGHTS = (*PICKLED, ".safetensors", ".index.json", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """A source as far as headers tell."""

    label: str
    location: str
    tensors: Mapping[str, TensorEntry]
    """In the order of file names, then of bytes."""
    pins: Mapping[str, Pin]
    """Identity of every safetensors file read."""
    config: Mapping[str, Any]
    """config.json; empty if there is none."""
    side_files: tuple[str, ...]
    """Names of the other files, sorted. Weights, in whatever format, are not among them."""
    side_pins: Mapping[str, Pin] = field(default_factory=dict)
    """Identity of each of those, so that a change of config or tokenizer is another merge."""
    lora: Lora | None = None
    """Of an adapter (`read_adapter`): how its tensors are added to a model. It is no model then."""


def read_catalog(folder: Folder, *, label: str) -> Catalog:
    """Read and check the headers of a checkpoint. No weight is read.

    Raises:
        SourceError: No safetensors, a malformed file, or files that contradict each other.
    """
    sizes = folder.sizes()
    weight_map = read_weight_map(folder, sizes, source=label)
    names = choose_files(sizes, weight_map, source=label, location=folder.location)
    pins, headers = _read_headers(folder, names, source=label)
    tensors = _join(headers, source=label)
    if weight_map is not None:
        _check_index(tensors, weight_map, source=label)
    return replace(read_beside(folder, label=label), tensors=tensors, pins=pins)


def read_beside(folder: Folder, *, label: str) -> Catalog:
    """What lies in a folder beside the weights, if it has any: config, tokenizer and the like.

    Raises:
        SourceError: A malformed config.
    """
    sizes = folder.sizes()
    side_files = tuple(sorted(name for name in sizes if not name.endswith(WEIGHTS)))
    return Catalog(
        label=label,
        location=folder.location,
        tensors={},
        pins={},
        config=read_config(folder, sizes, source=label),
        side_files=side_files,
        side_pins={name: folder.pin(name) for name in side_files},
    )


def read_weight_map(
    folder: Folder, sizes: Mapping[str, int], *, source: str
) -> Mapping[str, str] | None:
    """The index's weight map, or None where there is no index."""
    if INDEX_NAME not in sizes:
        return None
    raw = folder.read(INDEX_NAME, 0, sizes[INDEX_NAME])
    return parse_index(raw, source=source, file=INDEX_NAME)


def read_config(folder: Folder, sizes: Mapping[str, int], *, source: str) -> Mapping[str, Any]:
    """config.json, or nothing where there is none."""
    if CONFIG_NAME not in sizes:
        return {}
    raw = folder.read(CONFIG_NAME, 0, sizes[CONFIG_NAME])
    return parse_config(raw, file=CONFIG_NAME, source=source)


def choose_files(
    sizes: Mapping[str, int], weight_map: Mapping[str, str] | None, *, source: str, location: str
) -> list[str]:
    """Names of the files that make up the checkpoint, sorted.

    Raises:
        SourceError: There are none, some are absent, or loaders would disagree about which count.
    """
    if weight_map is not None:
        return _indexed_files(sizes, weight_map, source=source)
    if SINGLE_NAME in sizes:
        return [SINGLE_NAME]
    files = sorted(name for name in sizes if name.endswith(".safetensors"))
    if not files:
        raise SourceError(f"{source}: {_why_nothing(sizes, location)}", source=source)
    if _ADAPTER in files:
        why = "is a LoRA adapter; merge it into its base model and give the result"
        raise SourceError(f"{source}: {_ADAPTER} {why}", source=source, file=_ADAPTER)
    if missing := _missing_numbers(files):
        why = f"there is no {INDEX_NAME} and {_listed(missing)} missing; fetch the checkpoint again"
        raise SourceError(f"{source}: {why}", source=source, file=missing[0])
    return files


def _indexed_files(
    sizes: Mapping[str, int], weight_map: Mapping[str, str], *, source: str
) -> list[str]:
    files = sorted(set(weight_map.values()))
    if missing := [name for name in files if name not in sizes]:
        why = f"{INDEX_NAME} names {len(files)} shards and {_listed(missing)} missing"
        raise SourceError(f"{source}: {why}; fetch them", source=source, file=missing[0])
    if SINGLE_NAME in sizes and SINGLE_NAME not in files:
        raise SourceError(
            f"{source}: {SINGLE_NAME} lies beside {INDEX_NAME}, which does not name it. "
            "Some loaders take the one, some the other: remove the stale one.",
            source=source,
            file=SINGLE_NAME,
        )
    if left_out := [name for name in _missing_numbers(files) if name in sizes]:
        why = f"by its name {left_out[0]} belongs to the set that {INDEX_NAME} names without it"
        raise SourceError(f"{source}: {why}", source=source, file=left_out[0])
    return files


def _why_nothing(sizes: Mapping[str, int], location: str) -> str:
    if pickled := sorted(name for name in sizes if name.endswith(PICKLED)):
        stem = Path(location).with_suffix("") if location.endswith(PICKLED) else location
        return (
            f"{_listed(pickled)} pickled, and merges read safetensors only. To convert them, which "
            "runs nothing of what is in them: raymerge convert "
            f"{quote(location)} {quote(f'{stem}-safetensors')}"
        )
    return f"{location} holds no .safetensors file; it holds {len(sizes)} other files"


def _missing_numbers(files: Sequence[str]) -> list[str]:
    """Members that a set such as `model-00001-of-00003.safetensors` lacks."""
    numbered = [match for name in files if (match := NUMBERED.fullmatch(name))]
    sets = Counter((match[1], match[3]) for match in numbered)
    wanted = [
        f"{stem}-{i:05}-of-{total}.safetensors"
        for (stem, total), num_present in sorted(sets.items())
        if num_present < int(total)
        for i in range(1, int(total) + 1)
    ]
    present = set(files)
    return [name for name in wanted if name not in present]


def _read_headers(
    folder: Folder, names: Sequence[str], *, source: str
) -> tuple[dict[str, Pin], list[Header]]:
    def read(name: str) -> tuple[Pin, Header]:
        pin = folder.pin(name)
        return pin, read_pinned_header(folder, name, pin, source=source)

    with ThreadPoolExecutor(min(_PARALLEL_READS, len(names))) as pool:
        pinned = list(pool.map(read, names))
    pins = {name: pin for name, (pin, _) in zip(names, pinned, strict=True)}
    return pins, [header for _, header in pinned]


def _join(headers: Iterable[Header], *, source: str) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for header in headers:
        for entry in header.entries:
            first = tensors.setdefault(entry.name, entry)
            if first is not entry:
                raise SourceError(
                    f"{source}: tensor {entry.name!r} lies in both {first.file} and {entry.file}; "
                    "remove the stale file",
                    source=source,
                    tensor=entry.name,
                    file=entry.file,
                )
    return tensors


def _check_index(
    tensors: Mapping[str, TensorEntry], weight_map: Mapping[str, str], *, source: str
) -> None:
    for fault in index_faults(tensors, weight_map):
        raise SourceError(f"{source}: {fault}", source=source, file=INDEX_NAME)


def index_faults(
    tensors: Mapping[str, TensorEntry], weight_map: Mapping[str, str], *, index: str = INDEX_NAME
) -> tuple[str, ...]:
    """How an index contradicts the headers of its shards: a sentence per kind of contradiction."""
    absent = [name for name in weight_map if name not in tensors]
    unlisted = [name for name in tensors if name not in weight_map]
    misplaced = [
        name for name, file in weight_map.items() if name in tensors and tensors[name].file != file
    ]
    faults = []
    if absent:
        where = weight_map[absent[0]]
        faults.append(f"{index} places {_named(absent)} in {where}, which does not hold it")
    if unlisted:
        where = tensors[unlisted[0]].file
        faults.append(f"{where} holds {_named(unlisted)}, which {index} does not list")
    if misplaced:
        name = misplaced[0]
        faults.append(
            f"{index} places {_named(misplaced)} in {weight_map[name]}; it lies in "
            f"{tensors[name].file}"
        )
    return tuple(faults)


def _named(tensors: Sequence[str]) -> str:
    others = f" (and {len(tensors) - 1} others)" if len(tensors) > 1 else ""
    return f"tensor {tensors[0]!r}{others}"


def _listed(files: Sequence[str]) -> str:
    if len(files) == 1:
        return f"{files[0]} is"
    others = f" and {len(files) - 2} others" if len(files) > 2 else ""  # noqa: PLR2004
    return f"{', '.join(files[:2])}{others} are"
