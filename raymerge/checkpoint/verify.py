"""Check a checkpoint against itself: anyone's, not only ours, and all of it.

Where a catalog stops at the first contradiction, this goes on and reports every one. All bytes are
read once, in file order, a few MB at a time: one pass looks for NaN and Inf and takes the hashes.

A problem is what makes loaders fail, disagree or load something else than was written. What is odd
and harmless, such as a router kept in float32, is a note.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from raymerge.checkpoint.catalog import (
    CONFIG_NAME,
    NUMBERED,
    Catalog,
    choose_files,
    index_faults,
    read_weight_map,
)
from raymerge.checkpoint.consistency import (
    Recorded,
    config_problems,
    dtype_notes,
    record_problems,
    recorded_shards,
    totals_problems,
)
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.header import Header, TensorEntry, read_header
from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME, SINGLE_NAME
from raymerge.checkpoint.scan import same_bytes, scan_shard
from raymerge.checkpoint.strict_json import parse_config
from raymerge.checkpoint.ties import find_tie, tied_by_config
from raymerge.errors import SourceError

# Hashing and bit tests hold a core each and release the lock; beyond this the disk is the limit.
_MAX_THREADS = 8
_SUFFIX = ".safetensors"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VerifiedShard:
    """What one file was found to be."""

    name: str
    bytes: int
    sha256: str | None
    """None where no record asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked and what was found."""

    checkpoint: str
    tensors: int
    parameters: int
    bytes: int
    shards: tuple[VerifiedShard, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    checked_sha256: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class _Findings:
    """Problems and notes, in the order in which they were met."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def attempt(self, read: Callable[[], _T], *, otherwise: _T) -> _T:
        """Read something; where it cannot be read that is a problem, and the rest goes on."""
        try:
            return read()
        except SourceError as error:
            self.problems.append(str(error))
            return otherwise


def verify(folder: Folder) -> Verification:
    """Read a whole checkpoint and report every contradiction in it.

    Raises:
        SourceError: There is no safetensors checkpoint here at all.
    """
    sizes = folder.sizes()
    if INDEX_NAME not in sizes and not any(name.endswith(_SUFFIX) for name in sizes):
        choose_files(sizes, None, source=folder.location, location=folder.location)
    found = _Findings()
    weight_map = _weight_map(folder, sizes, found)
    chosen = _choose(folder, sizes, weight_map, found)
    if INDEX_NAME not in sizes and any(NUMBERED.fullmatch(name) for name in chosen):
        found.problems.append(
            f"there is no {INDEX_NAME} beside {len(chosen)} shards, without which loaders find no "
            "model: the merge was not finished, or the checkpoint not fetched whole"
        )
    headers = _read_headers(folder, chosen, found)
    catalog = _catalog(folder, sizes, headers, found)
    if weight_map is not None:
        readable = {name: file for name, file in weight_map.items() if file in headers}
        found.problems.extend(index_faults(catalog.tensors, readable))
    # Of half the tensors nothing more can be said: each lost shard is told once.
    if headers.keys() >= {*chosen, *(weight_map or {}).values()}:
        if weight_map is not None:
            index = _read_json(folder, INDEX_NAME, sizes, found)
            found.problems.extend(totals_problems(index.get("metadata"), catalog))
        found.problems.extend(config_problems(catalog))
        found.notes.extend(dtype_notes(catalog))
        _check_tie(folder, catalog, found)
    recorded = recorded_shards(_read_json(folder, RECORD_NAME, sizes, found))
    shards = _scan(folder, sizes, headers, recorded, found)
    found.problems.extend(record_problems({s.name: (s.bytes, s.sha256) for s in shards}, recorded))
    return _report(folder, catalog, shards, found, checked_sha256=bool(recorded))


def _report(
    folder: Folder,
    catalog: Catalog,
    shards: tuple[VerifiedShard, ...],
    found: _Findings,
    *,
    checked_sha256: bool,
) -> Verification:
    return Verification(
        checkpoint=folder.location,
        tensors=len(catalog.tensors),
        parameters=sum(entry.num_elements for entry in catalog.tensors.values()),
        bytes=sum(shard.bytes for shard in shards),
        shards=shards,
        problems=tuple(found.problems),
        notes=tuple(found.notes),
        checked_sha256=checked_sha256,
    )


def _read_json(
    folder: Folder, name: str, sizes: Mapping[str, int], found: _Findings
) -> Mapping[str, Any]:
    if name not in sizes:
        return {}
    raw = folder.read(name, 0, sizes[name])
    read = partial(parse_config, raw, file=name, source=folder.location)
    return found.attempt(read, otherwise={})


def _weight_map(
    folder: Folder, sizes: Mapping[str, int], found: _Findings
) -> Mapping[str, str] | None:
    read = partial(read_weight_map, folder, sizes, source=folder.location)
    return found.attempt(read, otherwise=None)


def _read_headers(folder: Folder, names: Iterable[str], found: _Findings) -> dict[str, Header]:
    headers = {}
    for name in names:
        read = partial(read_header, folder, name, source=folder.location)
        header = found.attempt(read, otherwise=None)
        if header is not None:
            headers[name] = header
    return headers


def _choose(
    folder: Folder,
    sizes: Mapping[str, int],
    weight_map: Mapping[str, str] | None,
    found: _Findings,
) -> list[str]:
    """Files to read: those a catalog would read, or where it would not, those that are there."""
    present = sorted(name for name in sizes if name.endswith(_SUFFIX))
    wanted = present if weight_map is None else sorted({*weight_map.values()} & {*sizes})
    choose = partial(
        choose_files, sizes, weight_map, source=folder.location, location=folder.location
    )
    chosen = found.attempt(choose, otherwise=wanted)
    for name in present:
        if name not in chosen and NUMBERED.fullmatch(name):
            found.problems.append(f"{name} is stale: no index names it and no loader reads it")
        elif name not in chosen and name != SINGLE_NAME:
            found.notes.append(f"{name} is not part of the checkpoint and was not checked")
    return chosen


def _catalog(
    folder: Folder, sizes: Mapping[str, int], headers: Mapping[str, Header], found: _Findings
) -> Catalog:
    tensors: dict[str, TensorEntry] = {}
    for header in headers.values():
        for entry in header.entries:
            first = tensors.setdefault(entry.name, entry)
            if first is not entry:
                found.problems.append(f"{entry.name} lies in both {first.file} and {entry.file}")
    return Catalog(
        label=folder.location,
        location=folder.location,
        tensors=tensors,
        pins={},
        config=_read_json(folder, CONFIG_NAME, sizes, found),
        side_files=(),
    )


def _check_tie(folder: Folder, catalog: Catalog, found: _Findings) -> None:
    tie = find_tie(catalog)
    if tie is None or not tied_by_config(catalog.config):
        return
    head, embedding = catalog.tensors[tie.head], catalog.tensors[tie.embedding]
    if found.attempt(partial(same_bytes, folder, head, embedding), otherwise=False):
        found.notes.append(f"{tie.head} is tied to {tie.embedding} and stored a second time")
    else:
        found.problems.append(
            f"config.json says {tie.head} is tied to {tie.embedding}, but their bytes differ"
        )


def _scan(
    folder: Folder,
    sizes: Mapping[str, int],
    headers: Mapping[str, Header],
    recorded: Mapping[str, Recorded],
    found: _Findings,
) -> tuple[VerifiedShard, ...]:
    digests = {name: hashlib.sha256() for name in headers if name in recorded}

    def scan(name: str) -> tuple[str, ...]:
        return scan_shard(folder, name, headers[name], digests.get(name))

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        running = {name: pool.submit(scan, name) for name in headers}
    nothing: tuple[str, ...] = ()
    for name, scanned in running.items():
        for tensor in found.attempt(scanned.result, otherwise=nothing):
            found.problems.append(f"{tensor} in {name} holds NaN or Inf")
    hashes = {name: digest.hexdigest() for name, digest in digests.items()}
    return tuple(VerifiedShard(name, sizes[name], hashes.get(name)) for name in headers)
