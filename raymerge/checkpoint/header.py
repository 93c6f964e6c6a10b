"""The safetensors header: 8 bytes of length N, N bytes of JSON, then the tensors' bytes.

    0        8                8 + N                                    end of file
    | N, u64 | {"a": {...}}   | bytes of a | bytes of b | ...          |

The reader is ours because a plan reads headers by range, without torch, and because an error must
name source, file and tensor. It refuses what the safetensors library refuses: tensors tile the data
exactly, with no hole, no overlap and nothing behind the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from math import prod
from operator import attrgetter
from typing import Any

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Folder, Pin
from raymerge.checkpoint.strict_json import parse_object
from raymerge.errors import PlanError, SourceError

# The safetensors library's own limit; a longer header loads nowhere.
MAX_HEADER_BYTES = 100_000_000

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_U64_MAX = 2**64 - 1
_NUM_FIELDS = 3
# Asked of types, because True is an int.
_are_ints = frozenset({int}).issuperset
_by_range = attrgetter("start", "stop")
_MAX_SHOWN = 80
# One lookup for both: calling the enum and asking it for its width is slow 90,000 times over.
_KNOWN = {dtype.value: (dtype, dtype.bits) for dtype in DType}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: the half-open byte range `[start, stop)` of its file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What one file holds, in the order of its bytes."""

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int
    """Offset of the first tensor byte in the file."""


def read_header(folder: Folder, name: str, *, source: str) -> Header:
    """Read a file's header in two exact reads.

    Raises:
        SourceError: The file is absent, cut short or malformed.
    """
    return read_pinned_header(folder, name, folder.pin(name), source=source)


def read_pinned_header(folder: Folder, name: str, pin: Pin, *, source: str) -> Header:
    """Read the header of a file whose identity is known, which saves asking for its size."""
    file_bytes = pin.size_bytes
    if file_bytes < _LENGTH_BYTES:
        why = f"the file has {file_bytes} bytes; a safetensors file has at least {_LENGTH_BYTES}"
        raise _refusal(source, name, why)
    length = int.from_bytes(folder.read(name, 0, _LENGTH_BYTES), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        why = f"its header claims {length} bytes; expected 1 to {MAX_HEADER_BYTES}"
        raise _refusal(source, name, why)
    data_start = _LENGTH_BYTES + length
    if data_start > file_bytes:
        missing = data_start - file_bytes
        why = f"the file is cut short inside its header: at least {missing} bytes are missing"
        raise _refusal(source, name, why)
    raw = folder.read(name, _LENGTH_BYTES, data_start)
    return parse_header(raw, file=name, source=source, file_bytes=file_bytes)


def parse_header(raw: bytes, *, file: str, source: str, file_bytes: int) -> Header:
    """Read the JSON of a header and check it against the file's length.

    Args:
        raw: The JSON, trailing spaces included, without the 8 bytes of length.
        file: Name of the file, for entries and messages.
        source: Label of the source, for messages.
        file_bytes: Length of the whole file.

    Raises:
        SourceError: Anything the safetensors format rules out.
    """
    if not 0 < len(raw) <= MAX_HEADER_BYTES:
        why = f"its header has {len(raw)} bytes; expected 1 to {MAX_HEADER_BYTES}"
        raise _refusal(source, file, why)
    if raw[:1] != b"{":
        raise _refusal(source, file, "its header does not start with '{'; not a safetensors file")
    document = parse_object(raw, file=file, source=source)
    metadata = _checked_metadata(document.pop(_METADATA, {}), file=file, source=source)
    data_start = _LENGTH_BYTES + len(raw)
    try:
        entries = [
            _parse_entry(name, fields, file, data_start) for name, fields in document.items()
        ]
        entries.sort(key=_by_range)
        _check_tiling(entries, data_start, file_bytes)
    except _MalformedTensorError as fault:
        raise _refusal(source, file, fault.why, tensor=fault.tensor) from None
    return Header(tuple(entries), metadata, data_start)


def build_header(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Write a header, length included, for tensors that lie one behind another in this order.

    Padded with spaces to a multiple of 8 bytes, and byte for byte what the safetensors library
    writes, given its own order and at most one metadata key (of two it shuffles the order).

    Raises:
        PlanError: The header would be longer than any reader accepts.
    """
    fields = [f"{encode_basestring(_METADATA)}:{_dump(metadata)}"] if metadata else []
    fields.extend(_written_entries(tensors))
    text = f"{{{','.join(fields)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise PlanError(
            f"a shard of {len(tensors)} tensors needs a header of {len(text)} bytes; readers "
            f"accept {MAX_HEADER_BYTES}. Lower --shard-size."
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _written_entries(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> Iterator[str]:
    start = 0
    for name, dtype, shape in tensors:
        assert name != _METADATA, "a tensor cannot bear the name of the header's own field"
        stop = start + dtype.num_bytes(shape)
        dims = ",".join(map(str, shape))
        yield (
            f'{encode_basestring(name)}:{{"dtype":"{dtype}","shape":[{dims}],'
            f'"data_offsets":[{start},{stop}]}}'
        )
        start = stop


def _dump(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class _MalformedTensorError(Exception):
    """A tensor's entry is wrong; the caller knows the file."""

    def __init__(self, tensor: str, why: str) -> None:
        super().__init__(tensor, why)
        self.tensor = tensor
        self.why = why


def _parse_entry(name: str, fields: Any, file: str, data_start: int) -> TensorEntry:
    # Tests stand in line here, not in functions of their own: this runs 90,000 times.
    if type(fields) is not dict or len(fields) != _NUM_FIELDS:
        raise _MalformedTensorError(name, _expected_fields(fields))
    try:
        dtype, bits = _KNOWN[fields["dtype"]]
        shape, offsets = fields["shape"], fields["data_offsets"]
    except (KeyError, TypeError):
        raise _MalformedTensorError(name, _expected_fields(fields)) from None
    if type(shape) is not list or not _are_ints(map(type, shape)) or min(shape, default=0) < 0:
        why = f"its shape is {_shown(shape)}; expected a list of integers from 0 to 2^64-1"
        raise _MalformedTensorError(name, why)
    if type(offsets) is not list or not _are_ints(map(type, offsets)) or len(offsets) != 2:  # noqa: PLR2004
        raise _MalformedTensorError(name, _expected_offsets(offsets))
    start, stop = offsets
    if not 0 <= start <= stop <= _U64_MAX:
        raise _MalformedTensorError(name, _expected_offsets(offsets))
    if prod(shape) * bits != (stop - start) * 8 or start == stop:
        _check_size(name, shape, bits, stop - start)
    return TensorEntry(name, dtype, tuple(shape), file, data_start + start, data_start + stop)


def _check_size(name: str, shape: list[int], bits: int, nbytes: int) -> None:
    # The library multiplies in 64 bits and refuses [2^40, 2^40, 0], which has no bytes at all.
    if prod(dim or 1 for dim in shape) * bits > _U64_MAX:
        raise _MalformedTensorError(name, f"its shape {_shown(shape)} has more than 2^64 bits")
    if (needed_bits := prod(shape) * bits) != nbytes * 8:
        needed = f"{needed_bits} bits" if needed_bits % 8 else f"{needed_bits // 8} bytes"
        why = f"its data_offsets span {nbytes} bytes; dtype and shape {_shown(shape)} make {needed}"
        raise _MalformedTensorError(name, why)


def _expected_offsets(offsets: Any) -> str:
    return f"its data_offsets are {_shown(offsets)}; expected [start, stop] with start <= stop"


def _expected_fields(fields: Any) -> str:
    if not isinstance(fields, dict):
        return f"its entry is {_shown(fields)}; expected an object with dtype, shape, data_offsets"
    if sorted(fields) != ["data_offsets", "dtype", "shape"]:
        return f"its fields are {_shown(sorted(fields))}; expected dtype, shape and data_offsets"
    return f"its dtype is {_shown(fields['dtype'])}; known are {', '.join(_KNOWN)}"


def _check_tiling(entries: Sequence[TensorEntry], data_start: int, file_bytes: int) -> None:
    expected = data_start
    for entry in entries:
        if entry.start != expected:
            gap = entry.start - expected
            fault = f"a hole of {gap} bytes lies before it" if gap > 0 else "it overlaps another"
            why = f"{fault} (its bytes are {entry.start}-{entry.stop}, expected from {expected})"
            raise _MalformedTensorError(entry.name, why)
        expected = entry.stop
    last = entries[-1].name if entries else None
    if expected > file_bytes:
        why = f"the file is cut short: it has {file_bytes} of {expected} bytes, "
        raise _MalformedTensorError(last or "", why + f"{expected - file_bytes} are missing")
    if expected < file_bytes:
        why = f"{file_bytes - expected} bytes lie behind the last tensor, which no tensor owns"
        raise _MalformedTensorError(last or "", why)


def _checked_metadata(metadata: Any, *, file: str, source: str) -> dict[str, str]:
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        why = f"its {_METADATA} is {_shown(metadata)}; expected an object of strings"
        raise _refusal(source, file, why)
    return metadata


def _shown(value: Any) -> str:
    # A hostile header may hold megabytes here, or brackets as deep as the parser lets them be.
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deep to show"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _refusal(source: str, file: str, why: str, *, tensor: str | None = None) -> SourceError:
    subject = f"{source}: {file}" if not tensor else f"{source}: {file}: tensor {tensor!r}"
    return SourceError(f"{subject}: {why}", source=source, file=file, tensor=tensor or None)
