"""How the tiles of a sweep get to a kernel, and what it says of them comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from raymerge.kernels.tile import Bytes, Tile

R = TypeVar("R")
Work = Callable[[Tile], int]
"""Hands a tile to a kernel and returns its report."""
Done = Callable[[Tile, int], None]
"""Takes a tile that a kernel is done with, and the report."""


@dataclass(frozen=True, slots=True)
class Flight(Generic[R]):
    """A tile and what becomes of it."""

    tile: Tile
    work: Callable[[Tile], R]
    """Hands it to kernels; returns what they report."""
    done: Callable[[Tile, R], None]
    """Takes it and the report, where what kernels wrote has come back."""


class Feed(Protocol):
    """One thread's way to the device that its kernels run on."""

    @property
    def depth(self) -> int:
        """Tiles under way at once: so many have memory of their own."""

    def memory(self, nbytes: int) -> Bytes:
        """Host memory for tiles, which the device can copy from and to."""
        ...

    def fly(self, flights: Iterable[Flight[R]]) -> None:
        """Take tiles to their kernels, and then to what is done with them, both in order.

        A tile is asked for once the one `depth` places before it is done with: its memory may be
        the same. Whatever ends this, nothing is under way afterwards. An error comes when its tile
        is due: what lies before it is done with, and nothing behind it.

        Args:
            flights: `work` is called on a thread of its own, one tile after another, where the
                device has one; `done` on this thread.
        """

    def run(self, tiles: Iterable[Tile], work: Work, done: Done) -> None:
        """Do the same with all tiles of a sweep; see `fly`."""

    def release(self) -> None:
        """Give back what is kept of the device's memory and not in use."""


def unpinned(nbytes: int) -> Bytes:
    """Memory as it comes."""
    return np.empty(nbytes, np.uint8)


class DirectFeed:
    """Where kernels run on this thread: there is no way to go."""

    depth = 1

    def memory(self, nbytes: int) -> Bytes:
        """See `Feed.memory`."""
        return unpinned(nbytes)

    def fly(self, flights: Iterable[Flight[R]]) -> None:
        """See `Feed.fly`."""
        for flight in flights:
            flight.done(flight.tile, flight.work(flight.tile))

    def run(self, tiles: Iterable[Tile], work: Work, done: Done) -> None:
        """See `Feed.run`."""
        for tile in tiles:
            done(tile, work(tile))

    def release(self) -> None:
        """See `Feed.release`: there is no such memory."""
