"""Fetch what a unit is going to need of remote files, ahead of the kernels and within a window.

    planned ranges, in the order of need
      |  as many as the window has room for, eight requests at a time
      v
    pieces, on their way or here     read_into copies out of them, and waits where it has to
      |  the last byte of one is used
      v
    its room goes to the next range

What no range covers (rows in another order, sweeps that a wrong sample makes necessary) is fetched
by itself, exactly; an eighth of the window is kept for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Self

import numpy as np

from raymerge.kernels.tile import Bytes
from raymerge.plan.ranges import Range, range_bytes
from raymerge.runtime.stopping import LoosePool, StoppedError

REQUESTS = 8
"""On their way at once for one unit: a connection to a bucket carries some 100 MB/s."""
STOP_S = 0.1
"""How often a thread that waits looks whether it has been told to stop."""

Fetch = Callable[[int, str, int, int], memoryview]
"""From source, file and a half-open range to its bytes, in memory of their own; any thread."""


@dataclass(eq=False, slots=True)
class _Piece:
    """A range that was asked for."""

    planned: Range
    left: int
    """Bytes of it that are still to be used."""
    view: memoryview | None = None
    """The bytes, once they have come and while they are wanted."""
    answered: bool = False
    dropped: bool = False

    def covers(self, offset: int) -> bool:
        return self.planned.start <= offset < self.planned.stop and self.left > 0


class Prefetch:
    """The ranges of one unit in progress. Used by one thread; fetches on threads of its own.

    Args:
        planned: In the order in which they are first needed.
        fetch: Gets one, or raises SourceError, which is raised where the bytes are needed.
        window_bytes: What is held at most, on its way and here.
        stop: Ends every wait.
        on_read: Told of bytes when they have come, from any thread.
    """

    def __init__(
        self,
        planned: Iterator[Range],
        fetch: Fetch,
        *,
        window_bytes: int,
        stop: Event,
        on_read: Callable[[int], None],
    ) -> None:
        self._planned = planned
        self._fetch = fetch
        self._stop = stop
        self._on_read = on_read
        self._alone_bytes = range_bytes(window_bytes)
        self._room = window_bytes - self._alone_bytes
        self._node = 0
        self._pieces: dict[tuple[int, str], list[_Piece]] = {}
        self._requests: dict[_Piece, Future[None]] = {}
        self._lock = Lock()
        self._pool = LoosePool(REQUESTS)
        with self._lock:
            self._next = next(planned, None)
            self._request()

    def read_into(self, buffer: Bytes, source: int, file: str, offset: int) -> None:
        """Fill the whole buffer from `offset` of a file on.

        Raises:
            SourceError: It could not be fetched.
            StoppedError: The run was told to stop meanwhile.
        """
        done = 0
        while done < buffer.nbytes:
            done += self._copy(buffer[done:], source, file, offset + done)

    def reach(self, node: int) -> None:
        """Forget what was fetched for tensors before this one and not used."""
        with self._lock:
            self._node = node
            for pieces in self._pieces.values():
                for piece in [one for one in pieces if one.planned.last_node < node]:
                    self._drop(piece)

    def close(self) -> None:
        """Call off what is not on its way yet, and forget the rest; waits for nothing."""
        with self._lock:
            self._next = None
            self._pieces.clear()
            self._requests.clear()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _copy(self, buffer: Bytes, source: int, file: str, offset: int) -> int:
        """Fill the front of the buffer, and say how much of it."""
        piece = self._piece(source, file, offset)
        if piece is None:
            stop = offset + min(buffer.nbytes, self._alone_bytes)
            return _copied(self._fetched(source, file, offset, stop), 0, buffer)
        self._wait(piece)
        assert piece.view is not None, piece.planned
        # No more than is counted on: a later sweep's range may begin inside this one.
        count = _copied(piece.view, offset - piece.planned.start, buffer[: piece.left])
        with self._lock:
            piece.left -= count
            if piece.left <= 0:
                self._drop(piece)
        return count

    def _piece(self, source: int, file: str, offset: int) -> _Piece | None:
        with self._lock:
            pieces = self._pieces.get((source, file), ())
            return next((piece for piece in pieces if piece.covers(offset)), None)

    def _wait(self, piece: _Piece) -> None:
        request = self._requests[piece]
        while not request.done():
            if self._stop.is_set():
                raise StoppedError("stopped")
            wait((request,), STOP_S)
        request.result()

    def _drop(self, piece: _Piece) -> None:
        piece.view = None
        piece.dropped = True
        self._pieces[piece.planned.source, piece.planned.file].remove(piece)
        called_off = self._requests.pop(piece).cancel()
        # What is on its way takes room until it has come.
        if called_off or piece.answered:
            self._release(piece)

    def _release(self, piece: _Piece) -> None:
        self._room += piece.planned.nbytes
        self._request()

    def _request(self) -> None:
        """Ask for the next ranges while there is room."""
        while self._next is not None and self._next.nbytes <= self._room:
            planned, self._next = self._next, next(self._planned, None)
            if planned.last_node < self._node:
                continue
            self._room -= planned.nbytes
            piece = _Piece(planned, planned.used_bytes)
            self._pieces.setdefault((planned.source, planned.file), []).append(piece)
            self._requests[piece] = self._pool.submit(self._answer, piece)

    def _answer(self, piece: _Piece) -> None:
        """Fetch a piece, on a thread of the pool."""
        planned = piece.planned
        view: memoryview | None = None
        try:
            view = self._fetched(planned.source, planned.file, planned.start, planned.stop)
        finally:
            with self._lock:
                piece.answered = True
                if piece.dropped:
                    view = None
                    self._release(piece)
                # No second reference: with the piece's the memory has to go.
                piece.view, view = view, None

    def _fetched(self, source: int, file: str, start: int, stop: int) -> memoryview:
        view = self._fetch(source, file, start, stop)
        self._on_read(view.nbytes)
        return view


def _copied(view: memoryview, inside: int, buffer: Bytes) -> int:
    """Fill the front of the buffer with what follows byte `inside`; returns how much of it."""
    count = min(buffer.nbytes, view.nbytes - inside)
    np.copyto(buffer[:count], np.frombuffer(view, np.uint8, count, inside))
    return count
