"""Requests to one prefix of an object store: asked again where that helps, and counted.

    list, head, get, range, put, delete    one request each, FailedError if it fails for good

What the failure of a request means to a source or to a destination is said in `objects`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import obstore
from obstore.store import ObjectStore as Client

from raymerge.checkpoint.folder import Pin
from raymerge.storage.clients import KINDS, SMALL_BYTES, Use, open_client
from raymerge.storage.failures import Cause, FailedError, Failure
from raymerge.storage.patience import Answer, Patience, Retrier
from raymerge.storage.urls import Location, Scheme


class Bucket:
    """The objects below a location. Safe to share between threads; it does not travel.

    Args:
        location: Bucket and prefix.
        options: Of `--storage-option`.
        patience: How long a request is asked again.
    """

    def __init__(self, location: Location, options: Mapping[str, str], patience: Patience) -> None:
        self.location = location
        self._options = options
        self._retrier = Retrier(patience, KINDS)

    @property
    def retries(self) -> int:
        """Requests that were made again so far."""
        return self._retrier.retries

    def key(self, name: str) -> str:
        """The full key of an object."""
        return f"{self.location.path}/{name}" if self.location.path else name

    def client(self, use: Use) -> Client:
        """The client of this process for a kind of request, made when first asked for."""
        return open_client(self.location, self._options, use)

    def list(self, *, below: bool) -> dict[str, Pin]:
        """The objects under the prefix by name, those of its folders only if `below`."""
        prefix = self.location.path or None

        def request() -> Mapping[str, Pin]:
            client = self.client(Use.ASK)
            if below:
                found = obstore.list(client, prefix).collect()
            else:
                found = obstore.list_with_delimiter(client, prefix)["objects"]
            return {meta["path"]: pin_of(meta) for meta in found}

        start = len(self.key(""))
        # A key that is the prefix itself marks a folder that a console has made.
        pins = self._ask(request)
        return {key[start:]: pin for key, pin in sorted(pins.items()) if key[start:]}

    def head(self, name: str) -> tuple[Pin, str | None]:
        """What an object is known by, and its version where the store has versions."""
        meta = self._ask(lambda: obstore.head(self.client(Use.ASK), self.key(name)))
        return pin_of(meta), meta["version"]

    def get(self, name: str) -> tuple[bytes, Pin]:
        """A whole object."""

        def request() -> tuple[bytes, Pin]:
            result = obstore.get(self.client(Use.ASK), self.key(name))
            pin, body = pin_of(result.meta), bytes(result.bytes())
            _check_length(len(body), pin.size_bytes)
            return body, pin

        return self._ask(request)

    def range(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        """The bytes `[start, stop)` of the object that `pin` names."""
        options: Any = {"range": (start, stop)}
        if pin.tag.endswith('"'):
            options["if_match"] = pin.tag

        def request() -> memoryview:
            result = obstore.get(self.client(Use.ASK), self.key(name), options=options)
            # Not every server heeds the condition.
            if (found := pin_of(result.meta)) != pin:
                raise FailedError(Failure(Cause.CHANGED, f"its ETag is {found.tag} now"))
            body = memoryview(result.bytes())
            _check_length(len(body), stop - start)
            return body

        return self._ask(request)

    def put(self, name: str, data: bytes, mode: Any = "overwrite") -> Pin:
        """Write an object by one request; `mode` is obstore's."""
        use = Use.ASK if len(data) <= SMALL_BYTES else Use.SEND

        def request() -> Pin:
            client, key = self.client(use), self.key(name)
            result = obstore.put(client, key, data, mode=mode, use_multipart=False)
            return Pin(len(data), _tag(result["e_tag"]))

        return self._ask(request)

    def condition(self, name: str, pin: Pin) -> dict[str, str]:
        """How a put is told to replace just the object that `pin` names.

        Raises:
            FailedError: On Google's store, which goes by version: another object is there now.
        """
        if self.location.scheme is not Scheme.GS:
            return {"e_tag": pin.tag}
        found, version = self.head(name)
        if found != pin or version is None:
            raise FailedError(Failure(Cause.CHANGED, f"its ETag is {found.tag} now"))
        return {"e_tag": pin.tag, "version": version}

    def delete(self, name: str) -> None:
        """Remove an object."""
        self._ask(lambda: obstore.delete(self.client(Use.ASK), self.key(name)))

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        return self._retrier.ask(request)


def pin_of(meta: Mapping[str, Any]) -> Pin:
    """What an object is known by, of a listing or of a request's answer."""
    tag = meta["e_tag"]
    # A store without ETags has nothing better to offer.
    return Pin(meta["size"], _tag(tag) if tag else f"modified {meta['last_modified'].isoformat()}")


def _tag(e_tag: str | None) -> str:
    """An ETag as it stands in a condition; Azure lists it without its quotes."""
    if not e_tag or e_tag.endswith('"'):
        return e_tag or ""
    return f'"{e_tag}"'


class _ShortAnswerError(OSError):
    """Fewer bytes than asked for, from a server that calls them complete."""


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise _ShortAnswerError(f"UnexpectedRange: {found} bytes of {expected} came")
