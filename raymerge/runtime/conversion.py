"""What a conversion will write, decided before anything is: names, addresses, files beside them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymerge.checkpoint.catalog import CONFIG_NAME, PICKLED, WEIGHTS, Catalog, read_catalog
from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME
from raymerge.checkpoint.layout import Shard, auto_shard_bytes, lay_out
from raymerge.checkpoint.pickles import PICKLED_INDEX
from raymerge.checkpoint.quantised import quantisation
from raymerge.checkpoint.strict_json import parse_config
from raymerge.checkpoint.ties import find_tie, tied_by_config
from raymerge.errors import PlanError, SourceError
from raymerge.runtime.side_files import set_dtype, why_left_out
from raymerge.storage.posix import PosixFolder

if TYPE_CHECKING:
    from raymerge.runtime.pickled import PickledSource

TARGETS = ("float32", "float16", "bfloat16")
"""What `dtype` may name."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that is not written, because it is a second name of one that is."""

    name: str
    same_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is decided before anything is written."""

    folder: PosixFolder
    catalog: Catalog
    pickled: PickledSource | None
    dtype: DType | None
    entries: tuple[TensorEntry, ...]
    """What is written, in the order of files."""
    tied: tuple[LeftOut, ...]
    shards: tuple[Shard, ...]
    files: Mapping[str, bytes]
    """What is copied beside the shards."""
    notes: tuple[str, ...]
    digest: str
    """Names the conversion: files of the source, precision and layout; nothing of places."""

    def output_dtype(self, entry: TensorEntry) -> DType:
        """What a tensor of the source is written as."""
        return _output_dtype(entry, self.dtype)


def decide(folder: PosixFolder, *, label: str, dtype: str | None, shard_bytes: int | None) -> Job:
    """Read headers or pickles, and settle names, addresses and the files beside them.

    Args:
        folder: The source.
        label: What messages call it.
        dtype: One of `TARGETS`, or None to keep what each tensor is.
        shard_bytes: Limit of a shard, None to choose it by the output's size.

    Raises:
        SourceError: The source is malformed, incomplete, or would have to run code.
        PlanError: It is quantised and a dtype is asked for.
    """
    target = _target(dtype)
    catalog, pickled = _open(folder, label)
    if not catalog.tensors:
        raise SourceError(f"{label}: its files hold no tensor to convert", source=label)
    scheme = quantisation(catalog)
    if scheme and target:
        raise PlanError(
            f"{label} is quantised: {scheme}; another dtype for its scales would make other "
            "weights of its codes. Leave --dtype away.",
            source=label,
        )
    tied, notes = _tied(catalog, pickled.shared) if pickled else ((), ())
    left_out = {tensor.name for tensor in tied}
    entries = tuple(e for e in catalog.tensors.values() if e.name not in left_out)
    output = [(entry.name, _output_dtype(entry, target), entry.shape) for entry in entries]
    total_bytes = sum(kind.num_bytes(shape) for _, kind, shape in output)
    shards = lay_out(output, max_shard_bytes=shard_bytes or auto_shard_bytes(total_bytes))
    files, said = _beside(folder, catalog)
    if CONFIG_NAME in files:
        files[CONFIG_NAME], changed = _fitted_config(
            files[CONFIG_NAME], shards, tied, label, scheme
        )
        said += changed
    if target and (kept := sum(not entry.dtype.mergeable for entry in entries)):
        said += (f"{kept} tensors are not of a floating-point type and keep theirs",)
    return Job(
        folder=folder,
        catalog=catalog,
        pickled=pickled,
        dtype=target,
        entries=entries,
        tied=tied,
        shards=shards,
        files=files,
        notes=(*(pickled.notes if pickled else ()), *notes, *said),
        digest=_digest(catalog, target, shards),
    )


def _open(folder: PosixFolder, label: str) -> tuple[Catalog, PickledSource | None]:
    """The source's catalog; safetensors count where a folder holds the weights in both forms."""
    sizes = folder.sizes()
    safe = [name for name in sizes if name.endswith(".safetensors")]
    if INDEX_NAME in sizes or any(name != "adapter_model.safetensors" for name in safe):
        return read_catalog(folder, label=label), None
    if PICKLED_INDEX in sizes or any(name.endswith(PICKLED) for name in sizes):
        from raymerge.runtime.pickled import read_pickled

        pickled = read_pickled(folder, label=label)
        return pickled.catalog, pickled
    return read_catalog(folder, label=label), None


def _tied(
    catalog: Catalog, shared: Mapping[str, str]
) -> tuple[tuple[LeftOut, ...], tuple[str, ...]]:
    """What of a pickle's shared memory is written once, and notes on the rest.

    A head that is its embedding is left out, as loaders expect, unless the config says it is not
    tied or there is no config to say so. Of any other pair only the model's own class knows whether
    it will share them again, and so both are written.
    """
    tie = find_tie(catalog)
    tied: tuple[LeftOut, ...] = ()
    may_tie = catalog.config and tied_by_config(catalog.config) is not False
    if (
        tie
        and may_tie
        and shared.get(tie.head, tie.head) == shared.get(tie.embedding, tie.embedding)
    ):
        tied = (LeftOut(tie.head, tie.embedding),)
    once = {tie.head, tie.embedding} if tie and tied else set()
    twice = [(name, first) for name, first in shared.items() if not {name, first} <= once]
    if not twice:
        return tied, ()
    name, first = twice[0]
    others = f", and {len(twice) - 1} more pairs" if len(twice) > 1 else ""
    return tied, (f"{name} shares memory with {first}{others}: each is written under its name",)


def _output_dtype(entry: TensorEntry, dtype: DType | None) -> DType:
    return dtype if dtype and entry.dtype.mergeable else entry.dtype


def _beside(folder: PosixFolder, catalog: Catalog) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """What is copied beside the shards, and a line on each file that is not."""
    sizes = folder.sizes()
    files: dict[str, bytes] = {}
    notes = []
    for name in sorted(sizes):
        if name in catalog.pins or name.endswith(".index.json"):
            continue
        if name.endswith(WEIGHTS):
            notes.append(f"{name} is left out: weights in another form, or no weights of a model")
        elif reason := _why_not_copied(name, sizes[name]):
            notes.append(f"{name} is left out: {reason}")
        else:
            files[name] = folder.read(name, 0, sizes[name])
    return files, tuple(notes)


def _why_not_copied(name: str, size_bytes: int) -> str | None:
    # It is the same model still: its README, and what its codes mean, stay true.
    reason = why_left_out(name, size_bytes)
    if reason in {"describes the donor", "of a quantised model"} and name != RECORD_NAME:
        return None
    return reason


def _fitted_config(
    raw: bytes,
    shards: tuple[Shard, ...],
    tied: tuple[LeftOut, ...],
    label: str,
    scheme: str | None,
) -> tuple[bytes, tuple[str, ...]]:
    """config.json with the output's precision and tie, and a line on each key that was not so."""
    config = parse_config(raw, file=CONFIG_NAME, source=label)
    before = json.loads(json.dumps(config))
    if scheme is None:
        parameters: Counter[DType] = Counter()
        for shard in shards:
            for slot in shard.slots:
                parameters[slot.dtype] += slot.nbytes * 8 // slot.dtype.bits
        set_dtype(config, parameters)
    if tied and tied_by_config(config) is None:
        config["tie_word_embeddings"] = True
    changed = [key for key in config if key not in before or config[key] != before[key]]
    if not changed:
        return raw, ()
    notes = (f"config.json: {key} is now {json.dumps(config[key])}" for key in changed)
    return json.dumps(config, indent=2).encode() + b"\n", tuple(notes)


def _digest(catalog: Catalog, dtype: DType | None, shards: tuple[Shard, ...]) -> str:
    """Names the conversion: files of the source, precision and layout; nothing of places."""
    pins = sorted({**catalog.pins, **catalog.side_pins}.items())
    layout = [(shard.name, len(shard.header), shard.nbytes) for shard in shards]
    named = "convert", [(name, pin.size_bytes, pin.tag) for name, pin in pins], dtype, layout
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def _target(dtype: str | None) -> DType | None:
    if dtype is not None and dtype not in TARGETS:
        raise PlanError(f"dtype is {dtype!r}; allowed: {', '.join(TARGETS)}")
    return None if dtype is None else OUTPUT_DTYPES[dtype]
