"""How work in progress ends before it is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from raymerge.errors import RaymergeError

Result = TypeVar("Result")


class StoppedError(RaymergeError):
    """The run was told to stop, or the unit was not begun; what is finished stays finished."""


class LoosePool:
    """Threads for requests to storage. The process ends without those that have no answer yet.

    The library's pool has every exit wait for its threads: minutes, where a server is silent.

    Args:
        threads: How many at most.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = Lock()
        self._started = 0
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a thread make a call."""
        future: Future[Result] = Future()
        self._waiting.put((future, lambda: call(*arguments)))
        with self._lock:
            if self._started < self._threads:
                self._started += 1
                Thread(target=self._work, name="loose", daemon=True).start()
        return future

    def close(self) -> None:
        """Call off what has not begun; waits for nothing."""
        while True:
            try:
                entry = self._waiting.get_nowait()
            except Empty:
                break
            if entry:
                entry[0].cancel()
        for _ in range(self._started):
            self._waiting.put(None)

    def _work(self) -> None:
        while entry := self._waiting.get():
            _answer(*entry)
            # Else what it holds would stay while this waits.
            del entry


def _answer(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)
    else:
        future.set_result(result)
