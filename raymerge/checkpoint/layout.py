"""Give every output byte an address before any of them exists. Pure.

A layout is a function of names, dtypes, shapes and the shard limit, never of workers or devices:
any worker can write any tensor at its address, and a second run writes the same files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import build_header

# What transformers writes, and what its older versions demanded.
METADATA = {"format": "pt"}

# With 2048 shards 64 GPUs, two units at work on each, have sixteen turns, and what is left for a
# last one is 3 % of the time; with 512, of which a mixture of 671 G parameters made 514, it was
# 10 %. Below 256 MB requests outweigh bytes, and 5 GB is what the hub and its users expect at most.
_AUTO_SHARDS = 2048
_MIN_AUTO_BYTES = 256_000_000
_MAX_AUTO_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Slot:
    """The address of one output tensor: the half-open byte range `[start, stop)` of its shard."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its header, then its slots one behind another."""

    name: str
    slots: tuple[Slot, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return len(self.header) + self.data_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.slots[-1].stop - len(self.header) if self.slots else 0


def lay_out(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], *, max_shard_bytes: int
) -> tuple[Shard, ...]:
    """Assign every tensor a shard and a byte range in it.

    Tensors keep their order; a shard closes when the next one would take its tensors over the
    limit. One tensor above the limit gets a shard to itself. Within a shard wider elements come
    first, so that every tensor is aligned: where all have one width, the order stays as given.

    Args:
        tensors: Name, dtype and shape of each, names distinct.
        max_shard_bytes: Limit of a shard's tensors, its header not counted.
    """
    assert len({name for name, _, _ in tensors}) == len(tensors), "two output tensors share a name"
    groups = list(_group(tensors, max_shard_bytes))
    return tuple(
        _address(f"model-{i:05}-of-{len(groups):05}.safetensors", group)
        for i, group in enumerate(groups, start=1)
    )


def header_of(slots: Iterable[Slot]) -> bytes:
    """The header of a shard that holds these slots and no others."""
    return build_header([(slot.name, slot.dtype, slot.shape) for slot in slots], METADATA)


def auto_shard_bytes(output_bytes: int) -> int:
    """The limit `--shard-size auto` stands for: a 2048th of the output, from 256 MB to 5 GB.

    >>> auto_shard_bytes(16_000_000_000), auto_shard_bytes(1_400_000_000_000)
    (256000000, 683593750)
    """
    return min(max(output_bytes // _AUTO_SHARDS, _MIN_AUTO_BYTES), _MAX_AUTO_BYTES)


def _group(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], max_shard_bytes: int
) -> Iterator[list[tuple[str, DType, tuple[int, ...]]]]:
    group: list[tuple[str, DType, tuple[int, ...]]] = []
    group_bytes = 0
    for tensor in tensors:
        _, dtype, shape = tensor
        nbytes = dtype.num_bytes(shape)
        if group and group_bytes + nbytes > max_shard_bytes:
            yield group
            group, group_bytes = [], 0
        group.append(tensor)
        group_bytes += nbytes
    if group:
        yield group


def _address(name: str, tensors: list[tuple[str, DType, tuple[int, ...]]]) -> Shard:
    # Stable, so tensors of one width keep their order.
    tensors.sort(key=lambda tensor: -tensor[1].bits)
    header = build_header(tensors, METADATA)
    slots = []
    start = len(header)
    for tensor, dtype, shape in tensors:
        stop = start + dtype.num_bytes(shape)
        slots.append(Slot(tensor, dtype, shape, start, stop))
        start = stop
    return Shard(name, tuple(slots), header)
