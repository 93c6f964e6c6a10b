"""One large object, sent in parts while it is made, seen whole or never."""

from __future__ import annotations

from typing import Any, NoReturn, Self

import obstore

from raymerge.checkpoint.folder import Pin
from raymerge.errors import StorageError
from raymerge.storage.advice import explain
from raymerge.storage.bucket import Bucket
from raymerge.storage.clients import KINDS, Use
from raymerge.storage.failures import FailedError, Failure, read_failure
from raymerge.storage.store import Upload

SMALLEST_PART_BYTES = 5 * 2**20
"""Amazon's and Google's."""


class ObjectUpload(Upload):
    """An upload in parts, of one thread. obstore sends a part again by itself.

    Args:
        bucket: Where to.
        name: The object.
        part_bytes: Size of all parts but the last.
        parts_in_flight: How many are sent at once.
    """

    def __init__(self, bucket: Bucket, name: str, *, part_bytes: int, parts_in_flight: int) -> None:
        assert part_bytes >= SMALLEST_PART_BYTES, part_bytes
        self._bucket = bucket
        self._name = name
        self._part_bytes = part_bytes
        self._written = 0
        try:
            client = bucket.client(Use.UPLOAD)
        except FailedError as error:
            self._fail(error.failure)
        self._writer: Any = obstore.open_writer(
            client, bucket.key(name), buffer_size=part_bytes, max_concurrency=parts_in_flight
        )

    def write(self, data: bytes) -> None:
        """Send the next bytes. Blocks while as many parts as agreed are on their way."""
        # obstore keeps a reference until the part is sent: memory that is written again afterwards
        # would be sent instead, without an error.
        if not isinstance(data, bytes):
            raise TypeError(f"bytes, which never change, are uploaded, not {type(data).__name__}")
        try:
            # Pieces of their own, lest one part on its way hold all of what it was cut from.
            for start in range(0, len(data), self._part_bytes):
                self._writer.write(data[start : start + self._part_bytes])
        except KINDS as error:
            failure = read_failure(error)
        else:
            self._written += len(data)
            return
        self.abort()
        self._fail(failure)

    def finish(self) -> Pin:
        """Return once the object is stored, with what it is known by."""
        stored = self._close()
        if isinstance(stored, Failure):
            self._fail(stored)
        if stored.size_bytes != self._written:
            raise StorageError(
                f"{self._url} has {stored.size_bytes} bytes, and {self._written} were uploaded; "
                "somebody else writes there",
                source=str(self._bucket.location),
                file=self._name,
            )
        return stored

    def _close(self) -> Pin | Failure:
        writer, self._writer = self._writer, None
        try:
            writer.close()
            # Closing does not say what the object is known by.
            return self._bucket.head(self._name)[0]
        except KINDS as error:
            return read_failure(error)
        except FailedError as error:
            return error.failure

    def abort(self) -> None:
        """Leave nothing behind. After `finish` this does nothing."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.__exit__(StorageError, StorageError("aborted"), None)
        except KINDS:
            # What could not be removed is what a killed process would leave, and goes its way.
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    @property
    def _url(self) -> str:
        location = self._bucket.location
        return f"{location.scheme}://{location.root}/{self._bucket.key(self._name)}"

    def _fail(self, failure: Failure) -> NoReturn:
        raise StorageError(
            f"{self._url} could not be uploaded: {explain(failure, self._bucket.location)}",
            source=str(self._bucket.location),
            file=self._name,
            retryable=failure.retryable,
        )
