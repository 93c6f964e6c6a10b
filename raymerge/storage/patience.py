"""Asking again: what is retryable, with growing, scattered pauses, until patience ends.

obstore can do this too, but in silence; a result has to say how often it was needed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raymerge.storage.failures import Cause, FailedError, Failure, read_failure

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request is asked again."""

    total_s: float = 300.0
    """From the first try on, for a server that has answered before."""
    first_contact_s: float = 10.0
    """For one that has not: its name or address is probably wrong."""
    pause_s: float = 0.1
    """Upper bound of the first pause; it doubles with each."""
    longest_pause_s: float = 10.0


class Retrier:
    """Makes requests until they succeed, fail for good, or patience ends. Counts them.

    Safe to share between threads.

    Args:
        patience: How long.
        kinds: Exceptions a request may raise; any other is a mistake of ours and passes.
    """

    def __init__(self, patience: Patience, kinds: tuple[type[Exception], ...]) -> None:
        self._patience = patience
        self._kinds = kinds
        self._lock = threading.Lock()
        self._retries = 0
        self._answered = False

    @property
    def retries(self) -> int:
        """Requests that were made again so far."""
        return self._retries

    def ask(self, request: Callable[[], Answer]) -> Answer:
        """The answer to a request.

        Raises:
            FailedError: It failed for good, or for longer than there is patience.
        """
        start = time.monotonic()
        tries = 0
        while True:
            tries += 1
            outcome = self._try(request)
            if not isinstance(outcome, _Failed):
                return outcome
            seconds = time.monotonic() - start
            pause = self._pause(outcome.failure, tries, seconds)
            # Raised here, outside of any handler: obstore's dump must not come along as context.
            if pause is None:
                raise FailedError(outcome.failure, tries=tries, seconds=seconds)
            with self._lock:
                self._retries += 1
            time.sleep(pause)

    def _try(self, request: Callable[[], Answer]) -> Answer | _Failed:
        try:
            answer = request()
        except self._kinds as error:
            failure = read_failure(error)
        else:
            self._answered = True
            return answer
        # Any answer of the server, even a refusal, shows that name and address are right.
        self._answered = self._answered or failure.cause not in _SILENT
        return _Failed(failure)

    def _pause(self, failure: Failure, tries: int, seconds: float) -> float | None:
        # Credentials that were found once are there; who gives them out may be in trouble.
        lost = failure.cause is Cause.NO_CREDENTIALS and self._answered
        if not (failure.retryable or lost):
            return None
        patience = self._patience
        left = (patience.total_s if self._answered else patience.first_contact_s) - seconds
        pause = min(patience.longest_pause_s, patience.pause_s * 2 ** min(tries - 1, 16))
        # Full jitter, so that workers that were refused together do not come back together.
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret hangs on it
        return pause if pause < left else None


_SILENT = frozenset((Cause.UNREACHABLE, Cause.BROKEN, Cause.NO_CREDENTIALS))


@dataclass(frozen=True, slots=True)
class _Failed:
    failure: Failure
