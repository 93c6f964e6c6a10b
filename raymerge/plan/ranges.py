"""Cut what is needed of remote files into the ranges to ask for, in the order of need. Pure.

    needs     a0 b0 a1 b1 a2 b2 | a3 b3 a4 ...     tiles of tensors in files a and b
    blocks    a: 0 1 2 3 | 4 5 6 7 | ...           of a file, at multiples of their length
    ranges    a0-a2 b0-b2, when b2 is in sight     what is needed of a block, as far as is looked

A tile of one tensor is too little to ask for: every request takes a journey there and back. A range
is made when the first byte of it is needed, and takes with it what will soon be needed of the same
block, of the same tensor or not. Blocks begin where stores, which keep objects in parts of a power
of two, begin a part: a request across the seam of two costs the store the half of a request more.
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


@dataclass(eq=False, slots=True)
class _Piece:
    """What is needed of one block."""

    need: Need
    taken: bool = False
    """Whether a range has it."""


@dataclass(slots=True)
class _Run:
    """Pieces of a block that touch or overlap."""

    start: int
    stop: int
    pieces: list[_Piece]

    @property
    def used_bytes(self) -> int:
        return sum(piece.need.nbytes for piece in self.pieces)


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
        if not piece.taken:
            yield _range(piece, blocks[key])
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


def _range(piece: _Piece, block: Iterable[_Piece]) -> Range:
    """What can be asked for together with a piece, of those of its block that no range has."""
    runs = _runs(one for one in block if not one.taken)
    at = next(index for index, run in enumerate(runs) if piece in run.pieces)
    joined = _joined(runs, at)
    for one in joined.pieces:
        one.taken = True
    return Range(
        piece.need.source,
        piece.need.file,
        joined.start,
        joined.stop,
        joined.used_bytes,
        max(one.need.node for one in joined.pieces),
    )


def _runs(pieces: Iterable[_Piece]) -> list[_Run]:
    runs: list[_Run] = []
    for piece in sorted(pieces, key=lambda piece: piece.need.start):
        if not runs or piece.need.start > runs[-1].stop:
            runs.append(_Run(piece.need.start, piece.need.stop, []))
        runs[-1].stop = max(runs[-1].stop, piece.need.stop)
        runs[-1].pieces.append(piece)
    return runs


def _joined(runs: list[_Run], at: int) -> _Run:
    """The run at some place, with its neighbours as far as the gaps allow."""
    run = runs[at]
    used_bytes, gap_bytes = run.used_bytes, 0
    for others in (runs[at + 1 :], reversed(runs[:at])):
        for other in others:
            gap = max(other.start - run.stop, run.start - other.stop)
            together = used_bytes + other.used_bytes
            if gap > min(MAX_GAP_BYTES, together // MAX_GAP_SHARE - gap_bytes):
                break
            gap_bytes += gap
            used_bytes = together
            run = _Run(
                min(run.start, other.start),
                max(run.stop, other.stop),
                [*run.pieces, *other.pieces],
            )
    return run
