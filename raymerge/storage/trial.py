"""Whether an object store takes uploads in parts, and forgets those that are aborted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import obstore

from raymerge.errors import StorageError
from raymerge.storage.advice import explain
from raymerge.storage.bucket import Bucket
from raymerge.storage.clients import KINDS, Use
from raymerge.storage.failures import Cause, FailedError, Failure, read_failure
from raymerge.storage.patience import Patience
from raymerge.storage.store import Access
from raymerge.storage.upload import SMALLEST_PART_BYTES
from raymerge.storage.urls import Location


def try_uploads(
    location: Location, access: Access, patience: Patience, name: str, data: bytes
) -> None:
    """Upload a small object in parts and remove it; begin another such upload and abort it.

    Raises:
        StorageError: One of them failed, or an aborted upload shows.
    """
    bucket = Bucket(location, access.options, patience)
    try:
        _send_in_parts(bucket, name, data)
        found = bucket.get(name)[0]
        bucket.delete(name)
        _give_up(bucket, name, data)
        left = _is_there(bucket, name)
    except FailedError as error:
        raise StorageError(
            f"{location}: an upload in parts failed: {explain(error.failure, location)}",
            source=str(location),
            retryable=error.failure.retryable,
        ) from None
    if found != data or left:
        what = "an upload that was aborted shows" if left else "an upload in parts came out wrong"
        raise StorageError(
            f"{location}: {what}. Shards are uploaded in parts: this store cannot hold a "
            "checkpoint whole or absent; give another one, or a path",
            source=str(location),
        )


def _send_in_parts(bucket: Bucket, name: str, data: bytes) -> None:
    def request() -> None:
        client, key = bucket.client(Use.UPLOAD), bucket.key(name)
        # One part: any but the last has to be as large as this.
        obstore.put(client, key, data, use_multipart=True, chunk_size=SMALLEST_PART_BYTES)

    _ask(request)


def _give_up(bucket: Bucket, name: str, data: bytes) -> None:
    # An upload that is never finished may have parts of any size.
    part_bytes = len(data) // 4

    def request() -> None:
        client, key = bucket.client(Use.UPLOAD), bucket.key(name)
        writer: Any = obstore.open_writer(client, key, buffer_size=part_bytes, max_concurrency=1)
        writer.write(data)
        writer.__exit__(StorageError, StorageError("aborted"), None)

    _ask(request)


def _is_there(bucket: Bucket, name: str) -> bool:
    try:
        bucket.head(name)
    except FailedError as error:
        if error.failure.cause is not Cause.MISSING:
            raise
        return False
    return True


def _ask(request: Callable[[], None]) -> None:
    failure: Failure | None = None
    try:
        request()
    except KINDS as error:
        failure = read_failure(error)
    # Raised outside of the handler: obstore's dump must not come along as context.
    if failure is not None:
        raise FailedError(failure)
