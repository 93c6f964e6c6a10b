"""Ranges of the Hub's files, read as they are needed.

A large file's address answers with another one, at a CDN, that is signed and valid for a while.
It is kept per file, so that a further range is one request; once it is refused it is asked for
again. A range that breaks off goes on where it stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.storage.hub_names import HubName
from raymerge.storage.hub_retry import STALL_S, TIMEOUT, Patience, Retries

_PARTIAL, _UNSATISFIABLE = 206, 416
# What a CDN says to an address whose time is up.
_REFUSED = frozenset({400, 401, 403, 404, 410})
# Below this within STALL_S a connection is as good as dead.
_LEAST_BYTES = 2**16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TAG = re.compile(r'(?:W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?')


class _ExpiredError(Exception):
    """A kept address is not valid any more."""


class HubRanges:
    """Reads ranges of the files of one commit. Safe to share between threads."""

    def __init__(self, name: HubName, retries: Retries) -> None:
        self._name = name
        self._retries = retries
        self._signed: dict[str, str] = {}
        self._lock = Lock()

    def read(self, file: str, start: int, stop: int, pin: Pin, *, patience_s: float) -> bytearray:
        """Exactly the bytes `[start, stop)`, tried again for as long as something comes."""
        buffer = bytearray(stop - start)
        filled = 0
        patience = Patience(patience_s, self._retries)
        while filled < len(buffer):
            before = filled
            try:
                for chunk in self._chunks(file, start + filled, stop, pin):
                    buffer[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
                if filled < len(buffer):
                    raise httpx2.RemoteProtocolError("the answer was cut short")
            except _ExpiredError:
                self._retries.add()
            except httpx2.HTTPError as error:
                if filled - before >= min(_LEAST_BYTES, len(buffer) - before):
                    patience.progressed()
                patience.wait(error)
        return buffer

    def _chunks(self, file: str, start: int, stop: int, pin: Pin) -> Iterator[bytes]:
        with self._answer(file, start, stop) as answer:
            self._check(answer, file, start, stop, pin)
            wanted = stop - start
            window_ends, window_bytes = time.monotonic() + STALL_S, 0
            # Up to the end of the answer: a connection that is left before is not used again.
            for chunk in answer.iter_raw():
                yield chunk[:wanted]
                wanted -= len(chunk)
                if wanted < 0:
                    return
                window_bytes += len(chunk)
                if time.monotonic() > window_ends:
                    if window_bytes < _LEAST_BYTES:
                        raise httpx2.ReadTimeout(f"{window_bytes} bytes in {STALL_S:.0f} s")
                    window_ends, window_bytes = time.monotonic() + STALL_S, 0

    @contextmanager
    def _answer(self, file: str, start: int, stop: int) -> Iterator[httpx2.Response]:
        kept = self._signed.get(file)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if kept is None:
            headers = build_hf_headers(library_name="raymerge", headers=headers)
        url = kept or hf_hub_url(self._name.repo, file, revision=self._name.revision)
        session = get_session()
        try:
            with session.stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
                if answer.status_code == _UNSATISFIABLE:
                    raise self._changed(file, "a shorter file", f"one of more than {start} bytes")
                if kept is not None and answer.status_code in _REFUSED:
                    with self._lock:
                        self._signed.pop(file, None)
                    raise _ExpiredError
                hf_raise_for_status(answer)
                yield answer
        except RuntimeError as error:
            # The library closes its session, which all threads share, when it cannot connect.
            if not session.is_closed:
                raise
            raise httpx2.ReadError("the session was closed") from error

    def _check(self, answer: httpx2.Response, file: str, start: int, stop: int, pin: Pin) -> None:
        """Raise unless it is the planned file, from the byte asked for on."""
        first = answer.history[0] if answer.history else answer
        if self._is_hub(first.url):
            self._check_identity(first, file, pin)
        if answer.history and not self._is_hub(answer.url):
            with self._lock:
                self._signed[file] = str(answer.url)
        span = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code == _PARTIAL and span is not None:
            found_start, size_bytes = int(span[1]), int(span[2])
        else:
            found_start, size_bytes = 0, int(answer.headers.get("Content-Length", pin.size_bytes))
        if size_bytes != pin.size_bytes:
            raise self._changed(file, f"{size_bytes} bytes", f"{pin.size_bytes}")
        if found_start != start:
            raise SourceError(
                f"{self._name.location}/{file}: bytes [{start}, {stop}) were asked for and the "
                f"answer begins at {found_start}: what is between here and the Hub does not serve "
                "ranges. Leave out --no-cache.",
                source=self._name.location,
                file=file,
            )

    def _check_identity(self, answer: httpx2.Response, file: str, pin: Pin) -> None:
        commit = answer.headers.get("X-Repo-Commit", self._name.revision)
        if commit != self._name.revision:
            raise self._changed(file, f"commit {commit}", self._name.revision)
        said = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag")
        tag = _TAG.fullmatch(said or "")
        if tag is not None and tag[1] != pin.tag:
            raise self._changed(file, f"content {tag[1]}", pin.tag)

    def _changed(self, file: str, found: str, expected: str) -> SourceError:
        return SourceError(
            f"{self._name.location}/{file} changed since it was planned: found {found}, expected "
            f"{expected}. Plan again.",
            source=self._name.location,
            file=file,
        )

    def _is_hub(self, url: httpx2.URL) -> bool:
        hub = urlsplit(hf_hub_url(self._name.repo, "x"))
        return (url.host, url.port) == (hub.hostname, hub.port)
