"""Cut what is needed of remote files into the ranges to ask for, in the order of need. Pure.

    needs     a0 b0 a1 b1 a2 b2 | a3 b3 a4 ...     tiles of tensors in files a and b
    blocks    a: 0 1 2 3 | 4 5 6 7 | ...           of a file, at multiples of their length
    ranges    a0-a2 b0-b2, when b2 is in sight     what is needed of a block, as far as is looked

A tile of one tensor is too little to ask for: every request takes a journey there and back. A range
is made when the first byte of it is needed, and takes with it what will soon be needed of the same
block, of the same tensor or not. Blocks begin where stores, which keep objects in parts of a power
of two, begin a part: across the seam of two SeaweedFS took a third more time of its processors.
All ranges of which some is left to be used lie within twice of what is looked ahead, so that this
is also the most that has to be held at once, in whatever order the needs lie in the files.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_BYTES = 80 * 2**20
"""What is fetched ahead of a thread where memory allows: ten ranges. Four sources side by side take
four of them, one is kept for what was not foreseen, and the others are on their way."""
LEAST_WINDOW_BYTES = 5 * 2**19
"""Ranges are 256 KiB then; a request for less is more journey than transport."""
MAX_RANGE_BYTES = 8 * 2**20
"""Of a connection of some 100 MB/s, the journey to a bucket is a third of the time that this takes.
Longer ones gain little and have more to repeat where one fails."""
MAX_GAP_BYTES = 2**16
"""What is rather fetched for nothing than asked around: less than passes in a journey."""
MAX_GAP_SHARE = 100
"""The gaps in a range are at most one part in so many: what is read is what was planned."""


class Need(NamedTuple):
    """Bytes of a file that are read in one go, or several that follow each other."""

    node: int
    """Position of the tensor that they are for."""
    source: int
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Their number."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file that are asked for at once."""

    source: int
    file: str
    start: int
    stop: int
    """Half-open."""
    used_bytes: int
    """Sum of the needs in it: with the last of these bytes it is done with."""
    last_node: int
    """Position of the last tensor that it is for."""

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.stop - self.start


@dataclass(slots=True)
class _Piece:
    """What is needed of one block."""

    need: Need
    group: _Group | None = None
    """What it is asked for with; None until something of its block is needed."""


@dataclass(slots=True)
class _Group:
    """Pieces of a block that are asked for together."""

    start: int
    stop: int
    used_bytes: int = 0
    gap_bytes: int = 0
    last_node: int = 0
    made: bool = False

    def takes(self, need: Need) -> bool:
        """Whether a need that begins no sooner than those in it lies near enough."""
        used_bytes = self.used_bytes + need.nbytes
        gap_bytes = need.start - self.stop
        return gap_bytes <= min(MAX_GAP_BYTES, used_bytes // MAX_GAP_SHARE - self.gap_bytes)

    def add(self, need: Need) -> None:
        self.gap_bytes += max(0, need.start - self.stop)
        self.stop = max(self.stop, need.stop)
        self.used_bytes += need.nbytes
        self.last_node = max(self.last_node, need.node)


def ranges(needs: Iterable[Need], window_bytes: int) -> Iterator[Range]:
    """Cover every byte of the needs, in the order in which the ranges are first needed.

    Bytes that are needed twice are covered twice, unless both needs are in sight at once.

    Args:
        needs: In the order in which they are read.
        window_bytes: What may be held at once, and a range beside it.
    """
    limit = range_bytes(window_bytes)
    unseen_bytes = (window_bytes - limit) // 2
    pieces = _pieces(needs, limit)
    following = next(pieces, None)
    in_sight: deque[_Piece] = deque()
    blocks: defaultdict[tuple[int, str, int], deque[_Piece]] = defaultdict(deque)
    while in_sight or following:
        while following and following.need.nbytes <= unseen_bytes:
            unseen_bytes -= following.need.nbytes
            in_sight.append(following)
            blocks[_block(following.need, limit)].append(following)
            following = next(pieces, None)
        piece = in_sight.popleft()
        key = _block(piece.need, limit)
        group = piece.group or _grouped(piece, blocks[key])
        if not group.made:
            group.made = True
            source, file, _ = key
            yield Range(source, file, group.start, group.stop, group.used_bytes, group.last_node)
        unseen_bytes += piece.need.nbytes
        blocks[key].popleft()
        if not blocks[key]:
            del blocks[key]


def range_bytes(window_bytes: int) -> int:
    """The longest range under a window: a power of two."""
    return min(MAX_RANGE_BYTES, 1 << (window_bytes // 10).bit_length() - 1)


def _block(need: Need, limit: int) -> tuple[int, str, int]:
    return need.source, need.file, need.start // limit


def _pieces(needs: Iterable[Need], limit: int) -> Iterator[_Piece]:
    """The needs, cut at the seams of blocks."""
    for need in needs:
        start = need.start
        while start < need.stop:
            stop = min(need.stop, (start // limit + 1) * limit)
            yield _Piece(need._replace(start=start, stop=stop))
            start = stop


def _grouped(first: _Piece, block: Iterable[_Piece]) -> _Group:
    """Put the pieces of a block that have no group into some; returns that of one of them."""
    group: _Group | None = None
    for piece in sorted(
        (one for one in block if one.group is None), key=lambda one: one.need.start
    ):
        if group is None or not group.takes(piece.need):
            group = _Group(piece.need.start, piece.need.start)
        group.add(piece.need)
        piece.group = group
    assert first.group is not None, first
    return first.group
