"""Cut what is needed of remote files into the ranges to ask for, in the order of need. Pure.

    needs     a0 b0 a1 b1 a2 b2 | a3 b3 a4 ...     tiles of tensors in files a and b
    ranges    a0-a2 b0-b2       | a3-...           | ends a stretch

A tile of one tensor is too little to ask for: every request takes a journey there and back. Needs
are taken together in stretches; within one they are sorted by file and offset, joined with their
neighbours, of the same tensor or not, and cut to size. All ranges of a stretch are used up when it
ends, so that a stretch is also the most that has to be held at once, in whatever order its needs
lie in the files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_BYTES = 64 * 2**20
"""What is fetched ahead of a thread where memory allows: eight ranges, four of them the stretch
that is in use."""
LEAST_WINDOW_BYTES = 2 * 2**20
"""Ranges are 256 KiB then; a request for less is more journey than transport."""
MAX_RANGE_BYTES = 8 * 2**20
"""Of a connection of some 100 MB/s, the journey to a bucket is a third of the time that this takes.
Longer ones gain little and have more to repeat where one fails."""
MAX_GAP_BYTES = 2**16
"""What is rather fetched for nothing than asked around: less than passes in a journey."""
MAX_GAP_SHARE = 100
"""The gaps in a stretch are at most one part in so many: what is read is what was planned."""


class Need(NamedTuple):
    """Bytes of a file that are read in one go, or several that follow each other."""

    node: int
    """Position of the tensor that they are for."""
    source: int
    file: str
    start: int
    stop: int


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


def ranges(needs: Iterable[Need], window_bytes: int) -> Iterator[Range]:
    """Cover every byte of the needs, in the order in which the ranges are first needed.

    Bytes that are needed twice are covered twice, unless both needs are in one stretch.

    Args:
        needs: In the order in which they are read.
        window_bytes: What may be held at once. What is needed is at most half of it at any time.
    """
    for stretch in _stretches(needs, window_bytes // 2):
        yield from _joined(stretch, range_bytes(window_bytes))


def range_bytes(window_bytes: int) -> int:
    """The longest range under a window."""
    return min(MAX_RANGE_BYTES, window_bytes // 8)


def _stretches(needs: Iterable[Need], stretch_bytes: int) -> Iterator[list[Need]]:
    """Runs of so many bytes; what lies across the end of one is cut."""
    stretch: list[Need] = []
    left = stretch_bytes
    for need in needs:
        rest = need
        while rest.stop - rest.start >= left:
            cut = rest.start + left
            yield [*stretch, rest._replace(stop=cut)]
            rest = rest._replace(start=cut)
            stretch, left = [], stretch_bytes
        if rest.start < rest.stop:
            stretch.append(rest)
            left -= rest.stop - rest.start
    if stretch:
        yield stretch


def _joined(stretch: Sequence[Need], limit: int) -> list[Range]:
    objects: dict[tuple[int, str], list[tuple[int, Need]]] = {}
    for order, need in enumerate(stretch):
        objects.setdefault((need.source, need.file), []).append((order, need))
    gaps_left = sum(need.stop - need.start for need in stretch) // MAX_GAP_SHARE
    found: list[tuple[int, Range]] = []
    for wanted in objects.values():
        runs: list[list[int]] = []
        for start, stop in sorted((need.start, need.stop) for _, need in wanted):
            gap = start - runs[-1][1] if runs else 0
            if not runs or gap > min(MAX_GAP_BYTES, gaps_left):
                runs.append([start, stop])
            else:
                runs[-1][1] = max(runs[-1][1], stop)
                gaps_left -= max(0, gap)
        found += _cut(runs, wanted, limit)
    return [made for _, made in sorted(found, key=lambda pair: pair[0])]


def _cut(
    runs: Iterable[Sequence[int]], wanted: Iterable[tuple[int, Need]], limit: int
) -> Iterator[tuple[int, Range]]:
    """Ranges of a file that cover `runs`, each with the number of the first need in it."""
    edges = [edge for start, stop in runs for edge in _even(start, stop, limit)]
    starts = [start for start, _ in edges]
    parts: dict[int, list[tuple[int, Need, int]]] = {}
    for order, need in wanted:
        index = bisect_right(starts, need.start) - 1
        while index < len(edges) and edges[index][0] < need.stop:
            start, stop = edges[index]
            used = min(stop, need.stop) - max(start, need.start)
            parts.setdefault(index, []).append((order, need, used))
            index += 1
    for index, needs in sorted(parts.items()):
        first, need, _ = needs[0]
        used_bytes = sum(used for _, _, used in needs)
        last_node = max(need.node for _, need, _ in needs)
        yield first, Range(need.source, need.file, *edges[index], used_bytes, last_node)


def _even(start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
    """Pieces of about one length, none longer than the limit."""
    number = -(-(stop - start) // limit)
    length = -(-(stop - start) // number)
    for first in range(start, stop, length):
        yield first, min(first + length, stop)
