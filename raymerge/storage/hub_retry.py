"""How long a request to the Hub is tried again, and how long is waited in between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

import httpx2
from huggingface_hub import errors
from huggingface_hub.utils import parse_ratelimit_headers

from raymerge.storage.hub_errors import passes

CONNECT_S = 8.0
STALL_S = 10.0
"""Without a byte for so long, a request is given up and made again."""
OPENING_S = 18.0
"""Patience while a source is opened: a last try that stalls still ends within 30 s."""
READING_S = 60.0
"""Patience for a source that has been read from: failures in a row, without a byte."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
# The Hub's windows are five minutes long: whoever shares a limit may lose several in a row.
_MOST_TOLD_WAITS = 8
_TOO_MANY = 429
T = TypeVar("T")
TIMEOUT = httpx2.Timeout(connect=CONNECT_S, read=STALL_S, write=STALL_S, pool=None)


class Retries:
    """A count that threads share."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.count = 0

    def add(self) -> None:
        """Count one more request that is made again."""
        with self._lock:
            self.count += 1


class Patience:
    """What is left of the patience with one operation.

    Args:
        seconds: How long failures in a row may last. Waits that the Hub asks for do not count.
        retries: Where requests that are made again are counted.
    """

    def __init__(self, seconds: float, retries: Retries) -> None:
        self._seconds = seconds
        self._retries = retries
        self._told_waits = 0
        self.progressed()

    def progressed(self) -> None:
        """Start anew: something came."""
        self._failing_since = time.monotonic()
        self._wait_s = _FIRST_WAIT_S

    def wait(self, error: httpx2.HTTPError) -> None:
        """Sleep until the next try, or raise the error where there shall be none."""
        if not passes(error):
            raise error
        told_s = told_wait(error)
        if told_s is not None:
            self._told_waits += 1
            if self._told_waits > _MOST_TOLD_WAITS:
                raise error
            # Whoever waits for the same moment shall not come back at the same moment.
            time.sleep(told_s + random.uniform(0, 1))  # noqa: S311 - no secret
            self._failing_since += told_s + 1
        else:
            wait_s = self._wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret
            if time.monotonic() + wait_s - self._failing_since > self._seconds:
                raise error
            time.sleep(wait_s)
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._retries.add()


def told_wait(error: httpx2.HTTPError) -> float | None:
    """Seconds that an answer asks to wait for, if it does."""
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == _TOO_MANY and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = headers.get("Retry-After", "").strip()
    return float(after) if after.isdigit() else None


def patiently(call: Callable[[], T], patience: Patience) -> T:
    """What `call` returns once it does."""
    while True:
        try:
            return call()
        except httpx2.HTTPError as error:
            patience.wait(error)
