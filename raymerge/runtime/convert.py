"""Write a checkpoint as sharded safetensors: from pickles, or from safetensors to other shards.

source's headers or pickles -> every output tensor has its address -> claim
    -> each file of the source once, its tensors on a few threads, a piece at a time
    -> sha256 of each shard -> publish, the index last

Nothing is computed but a change of element type, where one is asked for. What is read of a file is
mapped or a piece per thread, so a model may be far larger than memory. A run that was killed leaves
its claim, and the same command starts over; one that fails leaves nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.index import RECORD_NAME
from raymerge.errors import ConflictError, NonFiniteError, SourceError
from raymerge.kernels.tile import Bytes
from raymerge.plan.needs import COPY_BYTES
from raymerge.runtime.commit import Claim, finished_record
from raymerge.runtime.conversion import Job, LeftOut, decide
from raymerge.runtime.finite import is_finite
from raymerge.runtime.record import ShardRecord, raymerge_version
from raymerge.storage.posix import PosixFolder, PosixReader, PosixShard

MAX_THREADS = 4
"""More do not read one file faster."""

Pieces = Callable[[TensorEntry], Iterator[Bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion did; the fields are those of `raymerge convert --json`."""

    source: str
    output: str
    digest: str
    format: str
    """What the source was: `pickle` or `safetensors`."""
    dtype: str | None
    """The precision that was asked for."""
    tensors: int
    """Tensors written."""
    parameters: int
    cast: int
    """Tensors whose element type was changed."""
    tied: tuple[LeftOut, ...]
    bytes_read: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...]
    """What a user should know: files left out, config changed, files that could not be mapped."""
    shards: tuple[ShardRecord, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge convert --json`."""
        return asdict(self)


def convert(
    folder: PosixFolder,
    out: Path,
    *,
    label: str,
    dtype: str | None,
    shard_bytes: int | None,
    overwrite: bool,
    threads: int,
) -> Conversion:
    """Convert the checkpoint of a folder; see `raymerge.convert`.

    Args:
        folder: The source.
        out: Destination folder.
        label: What messages call the source.
        dtype: One of `TARGETS`, or None to keep what each tensor is.
        shard_bytes: Limit of a shard, None to choose it by the output's size.
        overwrite: Replace whatever `out` holds.
        threads: Tensors in progress at once.
    """
    began = perf_counter()
    _refuse_source(folder, out)
    job = decide(folder, label=label, dtype=dtype, shard_bytes=shard_bytes)
    record = None if overwrite else finished_record(out, job.digest)
    if record is not None:
        shards = tuple(ShardRecord(**shard) for shard in record["shards"])
        return _result(job, out, shards, began, moved=False)
    names = [*(shard.name for shard in job.shards), *job.files, RECORD_NAME]
    claim = Claim(out, digest=job.digest, overwrite=overwrite, names=names)
    with closing(claim):
        try:
            _write(job, claim, threads)
            _check_unchanged(job)
            shards = _hashed(job, claim.folder)
            claim.publish_shards(job.shards, {**job.files, RECORD_NAME: _record(job, shards)})
        except BaseException as error:
            if isinstance(error, OSError):
                # Another driver that took the destination has removed what this one wrote.
                claim.check()
            claim.abandon()
            raise
    return _result(job, out, shards, began, moved=True)


def _refuse_source(folder: PosixFolder, out: Path) -> None:
    if out.exists() and out.samefile(folder.path("")):
        raise ConflictError(f"{out} is the source's own folder; give another")


def _write(job: Job, claim: Claim, threads: int) -> None:
    """Fill every shard in the claim's folder."""
    for shard in job.shards:
        # All at once: where space is short, that is known before anything is read.
        with PosixShard(claim.folder / shard.name, shard.nbytes) as file:
            file.write_at(shard.header, 0)
    addresses = {slot.name: (shard, slot.start) for shard in job.shards for slot in shard.slots}

    def write(pieces: Pieces, entry: TensorEntry) -> None:
        shard, position = addresses[entry.name]
        target = job.output_dtype(entry)
        with PosixShard(claim.folder / shard.name, shard.nbytes) as file:
            done = 0
            for piece in pieces(entry):
                out = piece if target == entry.dtype else _cast(entry, piece, target, done)
                file.write_at(out.data, position)
                position += out.nbytes
                done += piece.nbytes
        assert done == entry.nbytes, (entry, done)

    with ThreadPoolExecutor(min(threads, MAX_THREADS)) as pool:
        for file, entries in groupby(job.entries, key=lambda entry: entry.file):
            claim.check()
            _check_unchanged(job)
            with _opened(job, file) as pieces:
                for _ in pool.map(partial(write, pieces), entries):
                    pass


@contextmanager
def _opened(job: Job, file: str) -> Iterator[Pieces]:
    """What gives the bytes of the tensors of one file, until the block ends."""
    if job.pickled is not None:
        from raymerge.runtime.pickled import pieces_of

        tensors = job.pickled.tensors(file)
        try:
            yield lambda entry: pieces_of(tensors[entry.name])
        finally:
            tensors.clear()
        return
    pin = job.catalog.pins[file]
    with PosixReader(job.folder.path(file), pin, source=job.catalog.label) as reader:

        def stored(entry: TensorEntry) -> Iterator[Bytes]:
            buffer = np.empty(min(entry.nbytes, COPY_BYTES), np.uint8)
            for start in range(entry.start, entry.stop, COPY_BYTES):
                piece = buffer[: min(COPY_BYTES, entry.stop - start)]
                reader.read_into(piece.data, start)
                yield piece

        yield stored


def _cast(entry: TensorEntry, piece: Bytes, target: DType, offset: int) -> Bytes:
    from raymerge.kernels.cast import cast

    out, bad = cast(piece, entry.dtype, target)
    if bad:
        lost = is_finite(piece, entry.dtype) & ~is_finite(out, target)
        if lost.any():
            index = offset * 8 // entry.dtype.bits + int(np.argmax(lost))
            raise NonFiniteError(
                f"element {index} of {entry.name} ({entry.file}) is beyond the range of "
                f"{target.torch_name}; take a wider dtype",
                tensor=entry.name,
                file=entry.file,
            )
    return out


def _check_unchanged(job: Job) -> None:
    for name, pin in {**job.catalog.pins, **job.catalog.side_pins}.items():
        if job.folder.pin(name) != pin:
            raise SourceError(
                f"{job.catalog.label}: {name} changed while it was converted; start again",
                source=job.catalog.label,
                file=name,
            )


def _hashed(job: Job, folder: Path) -> tuple[ShardRecord, ...]:
    """Every shard on the disk, with its sha256."""
    records = []
    for shard in job.shards:
        path = folder / shard.name
        with PosixShard(path, shard.nbytes) as file:
            file.sync()
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        records.append(ShardRecord(shard.name, shard.nbytes, digest))
    return tuple(records)


def _record(job: Job, shards: tuple[ShardRecord, ...]) -> bytes:
    """raymerge.json: what it was made from, and what `verify` holds the shards against."""
    record = {
        "raymerge": raymerge_version(),
        "digest": job.digest,
        "converted": {
            "label": job.catalog.label,
            "location": job.catalog.location,
            "dtype": job.dtype.torch_name if job.dtype else None,
            "tied": [asdict(tensor) for tensor in job.tied],
            "files": [
                {"name": name, "bytes": pin.size_bytes, "tag": pin.tag}
                for name, pin in sorted(job.catalog.pins.items())
            ],
        },
        "shards": [asdict(shard) for shard in shards],
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def _result(
    job: Job, out: Path, shards: tuple[ShardRecord, ...], began: float, *, moved: bool
) -> Conversion:
    return Conversion(
        source=job.catalog.location,
        output=str(out),
        digest=job.digest,
        format="pickle" if job.pickled else "safetensors",
        dtype=job.dtype.torch_name if job.dtype else None,
        tensors=len(job.entries),
        parameters=sum(entry.num_elements for entry in job.entries),
        cast=sum(job.output_dtype(entry) != entry.dtype for entry in job.entries),
        tied=job.tied,
        bytes_read=sum(entry.nbytes for entry in job.entries) if moved else 0,
        bytes_written=sum(shard.data_bytes for shard in job.shards) if moved else 0,
        seconds=round(perf_counter() - began, 3),
        notes=job.notes,
        shards=shards,
    )
