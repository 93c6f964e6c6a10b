"""SHA-256 of shards that several units have filled: read back once the last one is in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import FileIO
from mmap import mmap
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from raymerge.kernels.tile import Bytes

PIECE_BYTES = 2**20
PATIENCE_S = 0.02
"""How long a file waits for another: trials land one after the other."""


def file_sha256(path: Path, start: int, stop: int) -> str:
    """Hash a range of a file, or what there is of it."""
    digest = hashlib.sha256()
    piece = _room()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            count = file.readinto(piece[: stop - start].data)
            if not count:
                break
            digest.update(piece[:count].data)
            start += count
    return digest.hexdigest()


def whole_sha256(path: Path, nbytes: int) -> str:
    """Hash a file of so many bytes."""
    return file_sha256(path, 0, nbytes)


def _room() -> Bytes:
    # It begins at a page: elsewhere the kernel may copy into it at half the speed.
    return np.frombuffer(mmap(-1, PIECE_BYTES), np.uint8)


class ReadBack:
    """Hashes files of several trials, two at a time where two of a length come together.

    Args:
        threads: At work at once.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: SimpleQueue[tuple[Path, int, Future[str]]] = SimpleQueue()

    def sha256(self, path: Path, nbytes: int) -> str:
        """Hash a file of so many bytes; returns when that is done."""
        hashed: Future[str] = Future()
        self._waiting.put((path, nbytes, hashed))
        self._pool.submit(self._work)
        return hashed.result()

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self) -> None:
        taken = []
        with suppress(Empty):  # the other one took it along, or there is none
            taken.append(self._waiting.get_nowait())
            taken.append(self._waiting.get(timeout=PATIENCE_S))
        for _, nbytes, hashed in taken:
            alike = [one for one in taken if one[1] == nbytes]
            if not hashed.done():
                _answer([one[0] for one in alike], nbytes, [one[2] for one in alike])


def _answer(paths: Sequence[Path], nbytes: int, answers: Sequence[Future[str]]) -> None:
    try:
        found = _hash_alike(paths, nbytes)
    except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
        if len(paths) == 1:
            answers[0].set_exception(error)
        else:  # each by itself: what one file suffers from is not the other's
            for path, answer in zip(paths, answers, strict=True):
                _answer([path], nbytes, [answer])
    else:
        for answer, sha256 in zip(answers, found, strict=True):
            answer.set_result(sha256)


def _hash_alike(paths: Sequence[Path], nbytes: int) -> list[str]:
    """Hash files of one length side by side."""
    # numba is loaded here, and not by a run that finds everything done.
    from raymerge.runtime.hashing import TensorHashes

    hashes = TensorHashes(len(paths))
    rooms = [_room() for _ in paths]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        for start in range(0, nbytes, PIECE_BYTES):
            pieces = [room[: nbytes - start] for room in rooms]
            for file, piece in zip(files, pieces, strict=True):
                _fill(file, piece)
            hashes.update(pieces)
    return hashes.hexdigests()


def _fill(file: FileIO, piece: Bytes) -> None:
    """Read until the piece is full; what is missing at the end of a file is left as it was."""
    done = 0
    while done < piece.nbytes and (count := file.readinto(piece[done:].data)):
        done += count
